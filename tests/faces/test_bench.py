"""The bench command: what it measures, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from d3llm_trt.bench.measure import covered, measure
from d3llm_trt.bench.simulated import SimulatedAcceptance
from d3llm_trt.cli.main import cli
from d3llm_trt.runtime.decoding.config import DecodingConfig
from d3llm_trt.runtime.decoding.sampling_params import SamplingParams
from d3llm_trt.runtime.llm import LLM
from tests.support.engines import cpu_engine
from tests.support.golden_cases import GOLDEN
from tests.support.tiny_models import CHECKPOINTS

QUICK = ["--device", "cpu", "--input-len", "9", "--output-len", "40", "--runs", "1"]


def test_a_checkpoint_is_measured_as_json_and_as_a_picture(tmp_path: Path) -> None:
    picture = tmp_path / "bench.png"
    arguments = [str(CHECKPOINTS["llada"]), *QUICK, "--batch-size", "1,3", "--json", "--plot", str(picture)]
    result = CliRunner().invoke(cli, ["bench", *arguments])
    report = json.loads(result.stdout)
    assert [run["batch_size"] for run in report["measurements"]] == [1, 3]
    for run in report["measurements"]:
        assert run["seconds_per_pass"] * run["forward_passes"] == pytest.approx(run["seconds"])
        tokens = run["batch_size"] * run["output_len"]
        assert run["tokens_per_second"] * run["seconds"] == pytest.approx(tokens)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_table_names_the_simulated_rate() -> None:
    arguments = [str(CHECKPOINTS["dream"]), *QUICK, "--simulated-tpf", "5"]
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 0 and "simulated at 5" in result.stdout


def test_prompts_may_be_longer_than_the_vocabulary() -> None:
    with LLM.over(cpu_engine(GOLDEN / "llada_tiny", 1)) as llm:
        length = llm.spec.model_config.vocab_size + 10
        found = measure(llm, 1, length, SamplingParams(max_tokens=4, ignore_eos=True), runs=1)
    assert found.input_len == length and found.tokens_per_forward * found.forward_passes == 4


@pytest.mark.parametrize(("rate", "passes"), [(1.0, 40), (5.0, 8), (9.9, 5)])
@pytest.mark.parametrize("batch", [1, 3])
def test_so_many_tokens_are_committed_per_pass(rate: float, passes: int, batch: int) -> None:
    engine = SimulatedAcceptance(cpu_engine(GOLDEN / "llada_tiny", batch), rate)
    params = SamplingParams(max_tokens=40, ignore_eos=True, decoding=DecodingConfig(block_size=40, threshold=1e-9))
    with LLM.over(engine) as llm:
        outputs = llm.generate([{"prompt_token_ids": [7] * 9}] * batch, params)
    for output in outputs:
        assert output.metrics.num_forward_passes == passes


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ([], "allowed is one of the two"),
        (["x", "--shape", "llada-8b"], "allowed is one of the two"),
        (["--shape", "llada-8b", "--runs", "0"], "--runs is 0; allowed: 1 or more"),
        (["--shape", "llada-8b", "--batch-size", "1,0"], "--batch-size is (1, 0)"),
        (["--shape", "llada-8b", "--simulated-tpf", "0.5"], "--simulated-tpf is 0.5"),
        (["x", "--peers"], "--peers and --layers go with --shape"),
        (["--shape", "llada-8b", "--device", "cpu", "--breakdown"], "--device is 'cpu'; allowed: a GPU"),
        (["--shape", "llada-8b", "--plot", "x.pdf"], "--plot is 'x.pdf'; allowed: a .png file"),
    ],
)
def test_bad_input_is_refused(arguments: list[str], complaint: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = CliRunner().invoke(cli, ["bench", *arguments])
    assert result.exit_code == 2
    assert complaint in result.stderr


@given(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=12))
def test_time_that_kernels_share_counts_once(kernels: list[tuple[int, int]]) -> None:
    ranges = [(start, start + length) for start, length in kernels]
    assert covered(ranges) == len({moment for start, end in ranges for moment in range(start, end)})
