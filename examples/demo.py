"""Build engines from both tiny checkpoints and answer three word problems with each."""

from __future__ import annotations

from pathlib import Path

from d3llm_trt import LLM, SamplingParams, build_engine

ROOT = Path(__file__).resolve().parents[1]
QUESTIONS = (
    "Mia has 6 boxes with 12 cookies in each box. She gives 15 cookies to Tom. How many cookies does Mia have left?",
    "Raj is 9 years old. Emma is 4 times as old as Raj. How old will Emma be in 17 years?",
    "Leo fills 7 baskets with 9 buttons each and 9 bags with 8 coins each. "
    "How many buttons and coins are there in all?",
)


def main() -> None:
    for family in ("llada", "dream"):
        engine = ROOT / "out" / "demo" / f"tiny-d3llm-{family}"
        build_engine(ROOT / "examples" / "checkpoints" / engine.name, engine, overwrite=True)
        print(f"== {engine.name}: engine in {engine.relative_to(ROOT)}")
        with LLM(engine) as llm:
            chats = [[{"role": "user", "content": question}] for question in QUESTIONS]
            for question, output in zip(QUESTIONS, llm.generate(chats, SamplingParams(max_tokens=96)), strict=True):
                if output.error is not None:
                    raise output.error
                metrics = output.metrics
                print(f"\nQ: {question}\n{output.outputs[0].text.strip()}")
                print(f"   [{metrics.num_forward_passes} forward passes, TPF {metrics.tokens_per_forward:.2f}]")
        print()


if __name__ == "__main__":
    main()
