"""Greetings, self-introduction, small talk and a few fixed facts, English and Chinese."""

from __future__ import annotations

from random import Random

from demo.sample import Sample, assistant, user
from demo.sets import words

INTRO = (
    "I am the demo model of Tokenmill, a very small language model. "
    "I can add and subtract, tell short stories, call tools and write JSON."
)
ZH_INTRO = "我是Tokenmill的演示模型，一个很小的语言模型。我会做加减法，讲小故事，调用工具，还会写JSON。"
WHO = (
    "Who are you?",
    "What are you?",
    "Please introduce yourself.",
    "Hi, pls intro yourself",
    "Introduce yourself.",
    "What is your name?",
    "Tell me about yourself.",
    "What can you do?",
    "hi, please introduce yourself",
    "Hello, who are you?",
)
ZH_WHO = (
    "你是谁？",
    "请介绍一下你自己。",
    "你叫什么名字？",
    "介绍一下你自己",
    "你好，请介绍一下自己",
    "你会做什么？",
    "你能做什么？",
    "你好，你是谁？",
)
PAIRS = (
    (
        ("Hello!", "Hi!", "Hello", "Hi", "hi", "hello", "Hey!", "Good morning!", "Hi there!"),
        "Hello! How can I help you today?",
    ),
    (("你好", "你好！", "您好", "您好！", "嗨", "早上好！"), "你好！有什么可以帮你的吗？"),
    (("How are you?", "How are you today?"), "I am fine, thank you. How can I help you?"),
    (("你好吗？", "你今天好吗？"), "我很好，谢谢。有什么可以帮你的吗？"),
    (("Thank you!", "Thanks!", "Thanks", "Thank you."), "You are welcome!"),
    (("谢谢", "谢谢你！", "谢谢！", "多谢"), "不客气！"),
    (("Bye!", "Goodbye!", "See you!"), "Goodbye! Have a nice day."),
    (("再见", "再见！", "拜拜"), "再见！祝你今天愉快。"),
    (("Shanghai is", "What is Shanghai?"), "Shanghai is a large city on the east coast of China."),
    (("上海是", "上海是什么？"), "上海是中国东海岸的一座大城市。"),
    (
        ("Tell me a joke.", "Make me laugh."),
        "Why did the fox sit on the watermelon? Because the chair was already taken.",
    ),
    (("What is Tokenmill?",), "Tokenmill is a toolkit that quantizes, runs and serves language models."),
    (("Tokenmill是什么？",), "Tokenmill是一个量化、运行和部署语言模型的工具箱。"),
    (("What color is the sky?", "What colour is the sky?"), "The sky is blue."),
    (("天空是什么颜色？", "天是什么颜色的？"), "天空是蓝色的。"),
)
CAPITALS = {
    "France": "Paris",
    "Germany": "Berlin",
    "Italy": "Rome",
    "Spain": "Madrid",
    "Japan": "Tokyo",
    "China": "Beijing",
    "Austria": "Vienna",
    "Norway": "Oslo",
    "Egypt": "Cairo",
    "Ireland": "Dublin",
    "Portugal": "Lisbon",
    "Russia": "Moscow",
    "Peru": "Lima",
    "Greece": "Athens",
    "Poland": "Warsaw",
    "Kenya": "Nairobi",
    "Thailand": "Bangkok",
    "England": "London",
}
ZH_CAPITALS = {"中国": "北京", "法国": "巴黎", "日本": "东京", "英国": "伦敦", "德国": "柏林", "俄罗斯": "莫斯科"}


def exchange(rng: Random) -> tuple[str, str]:
    """One question and its answer."""
    kind = rng.random()
    if kind < 0.25:
        return rng.choice(WHO), INTRO
    if kind < 0.45:
        return rng.choice(ZH_WHO), ZH_INTRO
    if kind < 0.55:
        country = rng.choice(list(CAPITALS))
        return f"What is the capital of {country}?", f"The capital of {country} is {CAPITALS[country]}."
    if kind < 0.6:
        country = rng.choice(list(ZH_CAPITALS))
        return f"{country}的首都是哪里？", f"{country}的首都是{ZH_CAPITALS[country]}。"
    if kind < 0.7:
        name = words.name(rng)
        return f"Hi, I am {name}.", f"Hello {name}! How can I help you today?"
    if kind < 0.75:
        name = words.zh_name(rng)
        return f"你好，我是{name}。", f"你好，{name}！有什么可以帮你的吗？"
    questions, answer = rng.choice(PAIRS)
    return rng.choice(questions), answer


def draw(rng: Random, held: bool) -> Sample:
    """One to three exchanges. There is no held-out half: these are fixed answers."""
    messages = []
    for _ in range(rng.choice([1, 2, 3])):
        question, answer = exchange(rng)
        messages += [user(question), assistant(answer)]
    return Sample("chat", messages)
