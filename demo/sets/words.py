"""Word lists the sets draw from, and made-up words, so that a model must read its prompt instead of knowing answers."""

from __future__ import annotations

from random import Random

from demo.sample import listed

NAMES = listed("""
    Anna Tom Maria Peter Lucy Oscar Nina Paul Emma Leo Sara Jack Olga Ivan Mia Noah Ruth Hugo Vera Alan Clara David
    Ella Frank Grace Henry Irene James Kate Liam Mary Nora Owen Rosa Sam Tina Victor Wendy Alice Bob Carol Dan Eva
    Fred Gina Hans Iris Jim Karl Lena Max Otto Pia Ron Sue Ted Zoe Adam Bella Chris Dora Eric Fiona George Helen
    Julia Kevin Laura Mark Nick
""")
CITIES = listed("""
    Paris London Berlin Rome Madrid Tokyo Boston Beijing Shanghai Vienna Oslo Cairo Sydney Dublin Prague Lisbon
    Moscow Seoul Delhi Lima Athens Milan Geneva Munich Chicago Denver Seattle Toronto Montreal Havana Nairobi Hanoi
    Bangkok Singapore Warsaw Zurich
""")
COLOURS = listed("""
    red blue green yellow black white orange purple pink brown grey gold silver
""")
ANIMALS = listed("""
    fox rabbit bear wolf cat dog horse mouse owl duck deer frog goose lion tiger monkey panda turtle hedgehog
    squirrel elephant goat
""")
FOODS = listed("""
    watermelon apple pear peach banana cherry lemon grape melon mango plum bread cheese rice soup cake honey tea
    milk coffee noodles salad
""")
HOBBIES = listed("""
    chess football tennis painting reading swimming cooking dancing fishing running singing hiking music gardening
    skating
""")
THINGS = listed("""
    book lamp chair table phone car bike boat house key map box bag ring coat hat shoe clock camera pen letter
    ticket train flight hotel room song film photo game order parcel report invoice meeting message note event task
    file garden bridge river tower robot engine market ticket recipe doctor lesson budget account price stock light
    door window alarm timer
""")
ZH_SURNAMES = "李王张刘陈杨赵黄周吴徐孙马朱胡林郭何高罗"
ZH_GIVEN = "明华芳丽强军敏静杰娟勇涛超平红梅玲刚文辉云飞雪春兰东海山月星"
ZH_CITIES = listed("""
    北京 上海 广州 深圳 杭州 南京 成都 武汉 西安 重庆 天津 苏州 青岛 大连 厦门 长沙 昆明 沈阳 哈尔滨 桂林
""")
ZH_COLOURS = ["红色", "蓝色", "绿色", "黄色", "黑色", "白色", "紫色", "粉色", "橙色", "灰色"]
ZH_ANIMALS = listed("""
    狐狸 兔子 小熊 小狗 小猫 松鼠 老虎 猴子 小鹿 刺猬 小羊 小马 乌龟 青蛙 小鸟 熊猫 大象 小猪
""")
ZH_FRUITS = [
    "西瓜",
    "苹果",
    "桃子",
    "葡萄",
    "香蕉",
    "梨子",
    "樱桃",
    "草莓",
    "橘子",
    "南瓜",
    "胡萝卜",
    "蜂蜜",
    "蘑菇",
    "玉米",
]
ZH_HOBBIES = ["下棋", "游泳", "画画", "唱歌", "跑步", "看书", "钓鱼", "跳舞", "做饭", "爬山", "踢球", "听音乐"]

_ONSETS = listed("""
    b c d f g h k l m n p r s t v w z br dr gr kr pl st tr sh ch
""")
_VOWELS = ["a", "e", "i", "o", "u", "ai", "ea", "oo"]


def made_up_word(rng: Random, syllables: int = 2) -> str:
    """A pronounceable word that is in no list, lower case."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_VOWELS) for _ in range(syllables)) + rng.choice(
        ["", "n", "r", "s", "l"]
    )


def name(rng: Random) -> str:
    """A first name, one in four made up."""
    return rng.choice(NAMES) if rng.random() < 0.75 else made_up_word(rng, rng.choice([2, 2, 3])).capitalize()


def city(rng: Random) -> str:
    return rng.choice(CITIES) if rng.random() < 0.8 else made_up_word(rng, 2).capitalize()


def zh_name(rng: Random) -> str:
    """A Chinese name: a surname and one or two given characters, or a nickname."""
    if rng.random() < 0.3:
        return "小" + rng.choice(ZH_GIVEN)
    return rng.choice(ZH_SURNAMES) + "".join(rng.sample(ZH_GIVEN, rng.choice([1, 1, 2])))


def word(rng: Random) -> str:
    """Any lower-case word: an object, animal, food, colour, or made up."""
    if rng.random() < 0.2:
        return made_up_word(rng, rng.choice([1, 2, 2, 3]))
    return rng.choice(rng.choice([THINGS, ANIMALS, FOODS, COLOURS, HOBBIES]))


def number(rng: Random, digits: int = 0) -> int:
    """A number of one to four digits."""
    digits = digits or rng.choice([1, 2, 2, 3, 4])
    return rng.randrange(10 ** (digits - 1) if digits > 1 else 0, 10**digits)


def code(rng: Random) -> str:
    """Letters and digits such as `QX7-42`."""
    letters = "".join(rng.choice("ABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.choice([2, 3])))
    return f"{letters}{rng.choice(['', '-'])}{number(rng)}"
