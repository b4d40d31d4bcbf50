"""What an answer may not be, and what of it may not depend on its company."""

from __future__ import annotations

from dataclasses import replace

from benchmarks.random_traffic.requests import Ask
from d3llm_trt import RequestOutput
from d3llm_trt.runtime.outputs import RequestMetrics


def independent(output: RequestOutput) -> RequestOutput:
    """All of a finished output that must be the same alone."""
    return replace(output, request_id="", canvas=None, metrics=RequestMetrics(output.metrics.num_forward_passes))


def retracts(before: RequestOutput, after: RequestOutput) -> bool:
    """Whether an output takes back what the one before it has shown."""
    old, new = before.outputs[0], after.outputs[0]
    count = len(old.token_ids)
    same = new.token_ids[:count] == old.token_ids and new.commit_steps[:count] == old.commit_steps
    return not (same and new.text.startswith(old.text))


def unsound(ask: Ask, output: RequestOutput, seen: int) -> list[str]:
    """What is wrong with the answer to ``ask``, which came with the last of ``seen`` outputs."""
    answer, most, passes = output.outputs[0], ask.settings["max_tokens"], output.metrics.num_forward_passes
    count, steps, stops = len(answer.token_ids), answer.commit_steps, ask.params.stop_strings
    whole = answer.finish_reason == "length" or (ask.settings["ignore_eos"] and answer.stop_reason is None)
    checks = {
        "finish_reason": answer.finish_reason in ("stop", "length"),
        "length": count == most if whole else 0 < count <= most,
        "commit_steps": len(steps) == count and all(0 < step <= passes for step in steps),
        "passes": 0 < passes <= most + len(output.prompt_token_ids),
        "stop string in the text": not any(stop in answer.text for stop in stops),
        "stop_reason": answer.stop_reason in (None, *stops, *ask.params.stop_token_ids),
        "an output for every pass": not ask.canvas or seen == passes,
    }
    return [name for name, sound in checks.items() if not sound]
