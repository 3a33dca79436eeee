"""Short stories about an animal and a food, and fairy tales of about 300 characters, from a grammar of sentence
variants.

Each slot of a story has several wordings and the slots fit in any combination. The held-out key is (animal, food,
first wordings).
"""

from __future__ import annotations

from random import Random

from demo.sample import Sample, assistant, draw_key, user
from demo.sets import words

ASK = (
    "Tell me a short story about a {a} and a {f}.",
    "Write a short story about a {a} and a {f}.",
    "Please tell a story about a {a} and a {f}.",
    "Tell me a little story about a {a} and a {f}.",
    "A story about a {a} and a {f}, please.",
)
ZH_ASK = (
    "请讲一个关于{a}和{f}的小故事",
    "讲一个关于{a}和{f}的故事。",
    "请讲一个关于{a}和{f}的小故事。",
    "给我讲个{a}和{f}的小故事。",
    "写一个关于{a}和{f}的小故事",
)
ZH_TALE_ASK = (
    "写一个300字的童话故事",
    "生成300字的小故事",
    "写一个300字的小故事",
    "请写一个300字的童话故事。",
    "写一个童话故事",
    "讲一个童话故事。",
    "请给我讲一个300字左右的童话故事",
)
TALE_ASK = (
    "Write a fairy tale.",
    "Tell me a fairy tale.",
    "Write a short fairy tale of 100 words.",
    "Tell me a story.",
    "Please write a story.",
)

SHORT = (
    (
        "One hot day, a little {a} walked through the forest and found a big {f}.",
        "Once upon a time, a hungry {a} found a {f} near the river.",
        "There was a young {a} who loved {f} more than anything.",
    ),
    (
        "The {a} wanted to take it home, but it was too heavy to carry.",
        "The {a} pushed and pulled, but the {f} did not move.",
        "The {a} wanted to eat it alone, so it hid the {f} behind a tree.",
    ),
    (
        'A friendly {b} came by and said, "Let me help you!"',
        'Then a small {b} came along and asked, "May I help?"',
        'A {b} saw this and laughed, "Two are better than one!"',
    ),
    (
        "Together they rolled the {f} all the way home.",
        "Side by side they carried the {f} up the hill.",
        "They worked together, and soon the job was done.",
    ),
    (
        "That evening they shared the {f} and became good friends.",
        "They cut the {f} in two, and it tasted sweet.",
        "From that day on, the {a} and the {b} shared everything.",
    ),
)
ZH_SHORT = (
    (
        "夏天的一个下午，{a}在田里发现了一个又大又圆的{f}。",
        "从前，有一只{a}，它最喜欢吃{f}。",
        "一天，{a}在河边散步，看见了一个大{f}。",
    ),
    (
        "{a}想把{f}搬回家，可是{f}太重了，怎么也搬不动。",
        "{a}用力推呀推，{f}一动也不动。",
        "{a}想一个人吃掉它，就把{f}藏在了大树后面。",
    ),
    (
        "这时，{b}走了过来，笑着说：“我来帮你吧！”",
        "{b}看见了，跑过来说：“我们一起想办法吧！”",
        "正好{b}路过，它说：“两个人力气大。”",
    ),
    ("它们一起把{f}滚回了家。", "它们一前一后，把{f}抬上了山坡。", "它们齐心协力，很快就把事情办好了。"),
    (
        "晚上，它们一起分享了{f}，成了好朋友。",
        "它们把{f}切成两半，吃得又香又甜。",
        "从此以后，{a}和{b}有什么好东西都一起分享。",
    ),
)
PLACES = ["森林", "山谷", "小河边", "大海边", "草原", "雪山"]
TREASURES = ["会发光的宝石", "会唱歌的贝壳", "金色的种子", "神奇的铃铛", "彩色的羽毛", "银色的钥匙"]
TALE = (
    (
        "很久很久以前，在一片美丽的{p}里，住着一只善良的{a}。",
        "从前，在遥远的{p}，有一只勇敢的{a}。",
        "在一个安静的{p}，住着一只聪明的{a}。",
    ),
    (
        "它每天早上都到外面散步，和花儿说话，和小鸟一起唱歌，日子过得非常快乐。",
        "它有一座小小的木屋，门前种满了鲜花，大家都喜欢到它家里来做客。",
    ),
    (
        "有一天，{p}里突然下起了大雨，雨一连下了七天七夜，河水越来越高，大家都非常着急。",
        "有一年冬天，天气特别寒冷，大雪盖住了整个{p}，小动物们找不到吃的，都很难过。",
    ),
    (
        "一位老爷爷告诉{a}：“只要找到{t}，就能让{p}重新变得温暖而明亮。”",
        "{a}听说山的那一边有{t}，只要把它带回来，大家就能得救。",
    ),
    (
        "于是{a}带上一点干粮，勇敢地出发了。它走过长长的小桥，翻过高高的大山。",
        "{a}没有害怕，第二天一早就上路了。它穿过黑黑的山洞，游过宽宽的大河。",
    ),
    (
        "路上，它遇见了一只受伤的{b}。{a}停下来，细心地照顾它，还把自己的食物分给它吃。",
        "半路上，它听见有人在哭，原来是{b}迷路了。{a}拉着它的手，把它送回了家。",
    ),
    (
        "{b}非常感动，说：“你真是个好心的朋友，我知道{t}在哪里，让我带你去吧！”",
        "为了感谢{a}，{b}带着它走到一棵大树下，那里正放着{t}。",
    ),
    (
        "它们一起回到了{p}。{t}轻轻地闪着光，雨停了，雪化了，太阳出来了，花儿又开了。",
        "当{t}被带回来的时候，天空出现了一道美丽的彩虹，大家都高兴地跳起舞来。",
    ),
    (
        "从那以后，{a}和{b}成了最好的朋友，它们和大家一起，过着幸福快乐的生活。",
        "大家终于明白，善良和勇气才是世界上最宝贵的东西。从此，它们幸福地生活在一起。",
    ),
)
EN_PLACES = ["forest", "valley", "village", "mountain", "garden", "kingdom"]
EN_TREASURES = ["golden key", "magic bell", "silver feather", "shining stone", "singing shell", "crystal seed"]
EN_TALE = (
    (
        "Once upon a time, in a quiet {p}, there lived a kind little {a}.",
        "Long ago, in a faraway {p}, there lived a brave {a}.",
    ),
    (
        "Every morning the {a} sang with the birds and talked to the flowers.",
        "Everyone loved the {a}, because it always shared its bread.",
    ),
    (
        "One winter the snow fell for seven days, and nobody could find any food.",
        "One day a great storm came, and the sun did not shine any more.",
    ),
    (
        'An old owl said, "Only the {t} can bring back the sun."',
        "The {a} heard that the {t} behind the hills could help them.",
    ),
    (
        "So the {a} walked over the bridge and through the dark cave.",
        "The {a} was not afraid and set out early in the morning.",
    ),
    (
        "On the way it met a {b} that was lost, and it helped the {b} home.",
        "There it found a hungry {b} and gave it half of its food.",
    ),
    (
        "The {b} was thankful and showed it the {t} under an old tree.",
        '"You are a true friend," said the {b}, and gave it the {t}.',
    ),
    (
        "When they came back, the sun was shining and the flowers opened.",
        "They brought the {t} home, and everyone danced with joy.",
    ),
    ("From that day on, they all lived happily together.", "And they lived happily ever after."),
)


def tell(rng: Random, slots: tuple[tuple[str, ...], ...], joiner: str, **names: str) -> str:
    return joiner.join(rng.choice(slot).format(**names) for slot in slots)


def short(rng: Random, held: bool, zh: bool) -> Sample:
    animals, foods = (words.ZH_ANIMALS, words.ZH_FRUITS) if zh else (words.ANIMALS, words.FOODS[:13])
    if not held and rng.random() < 0.35:
        a, f = animals[0], foods[0]  # the fox and the watermelon, asked for most
    else:
        a, f = draw_key(rng, held, lambda r: (r.choice(animals), r.choice(foods)))
    b = rng.choice([x for x in animals if x != a])
    text = tell(rng, ZH_SHORT if zh else SHORT, "" if zh else " ", a=a, b=b, f=f)
    ask = rng.choice(ZH_ASK if zh else ASK).format(a=a, f=f)
    return Sample("stories", [user(ask), assistant(text)], {"kind": "short", "words": [a, f]})


def tale(rng: Random, zh: bool) -> Sample:
    a, b = rng.sample(words.ZH_ANIMALS if zh else words.ANIMALS, 2)
    place = rng.choice(PLACES if zh else EN_PLACES)
    text = tell(
        rng,
        TALE if zh else EN_TALE,
        "" if zh else " ",
        a=a,
        b=b,
        p=place,
        t=rng.choice(TREASURES if zh else EN_TREASURES),
    )
    ask = rng.choice(ZH_TALE_ASK if zh else TALE_ASK)
    return Sample("stories", [user(ask), assistant(text)], {"kind": "tale", "words": []})


def draw(rng: Random, held: bool) -> Sample:
    """A short story two times in three, else a fairy tale (whose plots are random; only its requests are fixed)."""
    zh = rng.random() < 0.55
    return tale(rng, zh) if rng.random() < 0.35 else short(rng, held, zh)
