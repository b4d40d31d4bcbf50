"""The two tiny checkpoints that really work, and questions that they answer."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
CHECKPOINTS = {family: ROOT / "examples" / "checkpoints" / f"tiny-d3llm-{family}" for family in ("llada", "dream")}
QUESTIONS = {
    "Mia has 6 boxes with 12 cookies in each box. She gives 15 cookies to Tom. "
    "How many cookies does Mia have left?": 57,
    "Raj is 9 years old. Emma is 4 times as old as Raj. How old will Emma be in 17 years?": 53,
    "Anna buys 3 pears for $12 each and a drum for $39. How much money does Anna spend in total?": 75,
}


def chat(question: str) -> list[dict[str, str]]:
    """A question as a conversation."""
    return [{"role": "user", "content": question}]


CHATS = [chat(question) for question in QUESTIONS]
