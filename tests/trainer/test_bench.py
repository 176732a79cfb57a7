"""`distrinews bench`: measurements, fits and projections, and the refusal of wrong settings."""

import json
from pathlib import Path

import numpy as np
import pytest

from pipelines import cli
from server.cli import build
from server.errors import UserError
from trainer.bench.collectives import OPERATIONS, Collectives, Fit, bus_factor, fit
from trainer.bench.project import Network, all_reduce_seconds, find_network, network_of, project, step_seconds
from trainer.bench.report import read, this_machine
from trainer.bench.scaling import ScalingResult, write_random_dataset
from trainer.bench.settings import CollectivesConfig, ProjectConfig, ScalingConfig
from trainer.bench.step import StepPoint
from trainer.data.dataset import Dataset

SIZES = [4096 * 2**power for power in range(17)]


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Returns a folder with the measurements of both commands for two processes."""
    folder = tmp_path_factory.mktemp("bench")
    quick = ["--ranks", "1..2", "--steps", "2", "--warmup-steps", "2", "--rounds", "1", "--batch-size", "4"]
    cli.main(["bench", "scaling", *quick, "--output", str(folder)])
    cli.main(
        ["bench", "collectives", "--ranks", "2", "--max-bytes", "1MB", "--repetitions", "3", "--output", str(folder)]
    )
    return folder


@pytest.mark.slow
def test_scaling_measures_weak_and_strong_with_one_and_two_processes(measured: Path) -> None:
    result = read(measured / "scaling.json", ScalingResult)
    assert [(p.ranks, p.scaling, p.batch_size) for p in result.points] == [(1, "weak", 4), (2, "weak", 4), (2, "strong", 2)]  # fmt: skip
    for point in result.points:
        assert 0 < point.backward_seconds < point.compute_seconds
        assert point.tokens_per_second * point.seconds / (point.ranks * point.batch_size) == pytest.approx(52, abs=20)
    assert result.gradient_bytes == 4 * result.parameters
    assert result.threads >= 1
    text = (measured / "scaling.md").read_text(encoding="utf-8")
    assert "speed-up" in text
    assert "`distrinews bench scaling --" in text
    picture = (measured / "scaling.svg").read_text(encoding="utf-8")
    assert picture.startswith('<svg xmlns="http://www.w3.org/2000/svg"')
    assert picture.count("<polyline") == 3


@pytest.mark.slow
def test_collectives_have_bandwidths_as_nccl_tests_define_them(measured: Path) -> None:
    result = read(measured / "collectives.json", Collectives)
    assert {*result.fits, *result.not_fitted} == set(OPERATIONS)  # on a busy machine times may make no line
    for operation, factor in (("all-reduce", 1.0), ("all-gather", 0.5), ("reduce-scatter", 0.5), ("broadcast", 1.0)):
        points = [point for point in result.points if point.operation == operation]
        assert [point.size_bytes for point in points] == SIZES[:9]
        for point in points:
            assert point.repetitions == 3
            assert point.algorithm_bandwidth == pytest.approx(point.size_bytes / point.seconds)
            assert point.bus_bandwidth == pytest.approx(factor * point.algorithm_bandwidth)


def test_the_factors_of_bus_bandwidth_for_eight_processes() -> None:
    assert [bus_factor(operation, 8) for operation in OPERATIONS] == [1.75, 0.875, 0.875, 1.0]


@pytest.mark.slow
def test_project_reports_its_error_on_the_measured_points(
    measured: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "network.json").write_text(collectives(2).model_dump_json(), encoding="utf-8")
    given = ["--from", str(measured / "scaling.json"), "--collectives", str(tmp_path / "network.json")]
    cli.main(["bench", "project", *given, "--world", "1..16", "--output", str(tmp_path)])
    assert "Error on the measured points" in capsys.readouterr().out
    found = json.loads((tmp_path / "project.json").read_text(encoding="utf-8"))
    assert [one["ranks"] for one in found["projected"]] == [1, 2, 4, 8, 16]
    assert [(one["ranks"], one["scaling"]) for one in found["errors"]] == [(2, "weak"), (2, "strong")]
    assert found["projected"][0]["efficiency"] == pytest.approx(1)


@pytest.mark.parametrize(("latency", "bandwidth"), [(2e-6, 200e9), (1e-4, 3e9), (5e-3, 1e8)])
def test_the_fit_finds_the_latency_and_bandwidth_that_times_were_made_with(latency: float, bandwidth: float) -> None:
    random = np.random.default_rng(0)
    seconds = [(latency + size / bandwidth) * random.normal(1, 0.02) for size in SIZES]
    found = fit(SIZES, seconds)
    assert found.latency_seconds == pytest.approx(latency, rel=0.03)
    assert found.bytes_per_second == pytest.approx(bandwidth, rel=0.03)
    assert found.median_error < 0.03


def test_outliers_do_not_bend_the_fit() -> None:
    seconds = [1e-4 + size / 1e9 for size in SIZES]
    seconds[3] *= 20
    seconds[-1] *= 0.3  # plain least squares would find a bandwidth of 1.6e9
    found = fit(SIZES, seconds)
    assert found.latency_seconds == pytest.approx(1e-4, rel=0.05)
    assert found.bytes_per_second == pytest.approx(1e9, rel=0.05)
    assert found.worst_error > 0.6


def test_times_that_do_not_grow_have_no_bandwidth() -> None:
    with pytest.raises(UserError, match="measure larger messages with --max-bytes"):
        fit(SIZES[:3], [1e-3] * 3)


def made(*, overlap: float, latency: float = 1e-4, bandwidth: float = 1e9) -> ScalingResult:
    """Steps of 80 ms of computation, 50 of them backward, and an exchange of 100 MB as the formula has it."""
    points = []
    for ranks, scaling in ((1, "weak"), (2, "weak"), (2, "strong"), (4, "weak"), (4, "strong")):
        share = ranks if scaling == "strong" else 1
        exchange = 4 * 2 * (ranks - 1) * latency + 2 * (ranks - 1) / ranks * 1e8 / bandwidth
        seconds = 0.08 / share + max(0.0, exchange - overlap * 0.05 / share)
        points.append(StepPoint.model_validate({
            "ranks": ranks, "scaling": scaling, "batch_size": 32 // share, "seconds": seconds, "compute_seconds": 0.08 / share,
            "backward_seconds": 0.05 / share, "tokens_per_second": 1600 * ranks / share / seconds,
        }))  # fmt: skip
    return ScalingResult(
        machine=this_machine(), config=ScalingConfig(), gradient_bytes=100_000_000, parameters=25_000_000, buckets=4,
        precision="float32", threads=1, points=points, rounds=points,
    )  # fmt: skip


def collectives(ranks: int, *, latency: float = 6e-4, bandwidth: float = 2e9) -> Collectives:
    fitted = Fit(latency_seconds=latency, bytes_per_second=bandwidth, median_error=0, worst_error=0)
    return Collectives(machine=this_machine(), ranks=ranks, points=[], fits={"all-reduce": fitted}, not_fitted={})


NETWORK = Network(latency_seconds=1e-4, bytes_per_second=1e9, source="made")


def test_projection_finds_the_overlap_exactly_where_the_formula_made_the_steps() -> None:
    found = project(made(overlap=0.6), NETWORK, ProjectConfig())
    assert found.overlap == pytest.approx(0.6)
    assert [one.error for one in found.errors] == pytest.approx([0] * 4)
    last = found.projected[-1]
    exchange = 4 * 2 * 1023 * 1e-4 + 2 * 1023 / 1024 * 1e8 / 1e9
    assert last.seconds == pytest.approx(0.08 + exchange - 0.03)
    assert last.efficiency == pytest.approx(0.08 / last.seconds)
    assert last.tokens_per_second == pytest.approx(1024 * 1600 / last.seconds)


def test_a_wrong_network_shows_in_the_error() -> None:
    slower = NETWORK.model_copy(update={"bytes_per_second": 0.5e9})
    found = project(made(overlap=0.6), slower, ProjectConfig(overlap=0.6))
    assert all(one.error > 0.3 for one in found.errors)


def test_a_step_hides_no_more_than_a_share_of_its_backward_pass() -> None:
    assert step_seconds(1.0, backward=0.6, exchange=0.2, overlap=0.5) == 1.0
    assert step_seconds(1.0, backward=0.6, exchange=0.5, overlap=0.5) == pytest.approx(1.2)
    assert all_reduce_seconds(1, size_bytes=10**9, messages=9, network=NETWORK) == 0


def test_the_ring_gives_back_the_all_reduce_that_was_measured() -> None:
    network = network_of(collectives(4), ProjectConfig())
    assert all_reduce_seconds(4, size_bytes=10**8, messages=1, network=network) == pytest.approx(6e-4 + 0.05)


def test_another_network_can_be_named_in_whole_or_in_part() -> None:
    other = find_network(ProjectConfig(latency_microseconds=5, bandwidth_gigabytes=100), Path("there is no such file"))
    assert (other.latency_seconds, other.bytes_per_second, other.source) == (5e-6, 100e9, "as set")
    part = network_of(collectives(4), ProjectConfig(bandwidth_gigabytes=100))
    assert [part.latency_seconds, part.bytes_per_second] == pytest.approx([1e-4, 100e9])
    assert part.source.startswith("bandwidth as set, the other fitted on 4 processes")


def test_an_all_reduce_that_made_no_line_projects_nothing() -> None:
    unknown = Collectives(machine=this_machine(), ranks=2, points=[], fits={}, not_fitted={"all-reduce": "flat"})
    with pytest.raises(UserError, match="no latency and bandwidth of all-reduce: flat; or name both"):
        network_of(unknown, ProjectConfig(latency_microseconds=5))


def test_one_process_alone_does_not_show_the_overlap() -> None:
    alone = made(overlap=0.6)
    alone.points[1:] = []
    with pytest.raises(UserError, match="name --overlap"):
        project(alone, NETWORK, ProjectConfig())
    assert project(alone, NETWORK, ProjectConfig(overlap=0.0)).errors == []


def test_ranges_double_and_sizes_have_units() -> None:
    assert build(ProjectConfig, {"world": "1..100"}).world == (1, 2, 4, 8, 16, 32, 64, 100)
    assert build(ScalingConfig, {"ranks": "4,1,2"}).ranks == (1, 2, 4)
    assert build(CollectivesConfig, {"min_bytes": "8KB", "max_bytes": "1GB"}).max_bytes == 2**30


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        (["scaling", "--ranks", "2..4"], "ranks has to begin with 1"),
        (["scaling", "--ranks", "1,3"], "batch_size = 32 cannot be divided evenly among 3 ranks"),
        (["scaling", "--ranks", "one"], "--ranks 'one': write a range such as 1..8, which doubles, or a list such as 1,2,3"),
        (["collectives", "--ranks", "1"], "--ranks '1': input should be greater than or equal to 2"),
        (["collectives", "--max-bytes", "1TB"], "--max-bytes '1TB': write bytes as a whole number, or with KB, MB or GB"),
        (["collectives", "--max-bytes", "4KB"], "max_bytes = 4,096 is too near min_bytes = 4,096"),
        (["project", "--world", "0..8"], "a range goes from a number of at least 1"),
        (["project", "--overlap", "2"], "--overlap '2': input should be less than or equal to 1"),
    ],
)  # fmt: skip
def test_a_wrong_setting_is_refused_in_one_line(
    command: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["bench", *command])
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert expected in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_a_file_that_is_missing_or_another_is_named(measured: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.json: cannot be read: No such file"):
        read(tmp_path / "none.json", ScalingResult)
    with pytest.raises(UserError, match=r"collectives\.json: is no result"):
        read(measured / "collectives.json", ScalingResult)


def test_random_rows_have_the_vocabulary_and_tokenizer_of_a_folder(dataset: Dataset, tmp_path: Path) -> None:
    write_random_dataset(tmp_path / "made", model=str(dataset.tokenizer_folder), rows=300, seed=0)
    made_rows = Dataset(tmp_path / "made")
    assert made_rows.info["tokenizer"] == dataset.info["tokenizer"]
    assert made_rows.vocabulary_size == dataset.vocabulary_size
    assert np.percentile(made_rows.train.lengths, [5, 50, 95]) == pytest.approx([31, 50, 79], abs=5)
    assert all(made_rows.train.tokens(row).max() < dataset.vocabulary_size for row in range(300))
