"""A million image files: an index in memory, never their pixels, and a start within seconds.

    python tests/large_source_test.py FOLDER NUM_PATHS WORKDIR

is the process that is measured: it trains 20 steps, exports 1,000 labels, and prints what that
took, as JSON.
"""

import json
import pathlib
import resource
import subprocess
import sys
import time

import numpy as np
import pytest

SIZE = 32
NUM_STEPS = 20
MAX_EXPORTED = 1_000
GIGABYTE = 2**30


def _main(folder: str, num_paths: int, workdir: str) -> None:
    import mlc_jax as mlc
    from mlc_jax.data import Subset
    from mlc_jax.data.dataset import Dataset
    from mlc_jax.data.prepare import Normalize
    from mlc_jax.files.pictures import Files, Geometry, Pictures
    from mlc_jax.report import report
    from mlc_jax.training import loop
    from mlc_jax.training.run import Settings, create_run
    from mlc_jax.workdir.workdir import locked_workdir

    start = time.perf_counter()
    files = np.array(sorted(path.name for path in pathlib.Path(folder).iterdir()), "S")
    names = files[np.arange(num_paths) % len(files)]
    store = Files(folder, names, np.zeros(num_paths, np.int64))
    source = Pictures(store, Geometry(SIZE))
    labels = np.arange(num_paths, dtype=np.int32) % 10
    everything = Subset.whole(source, given=labels, truth=labels)
    dataset = Dataset(
        name="paths",
        class_names=tuple("0123456789"),
        noisy=everything.take(slice(100, None)),
        clean=everything.take(slice(100)),
        validation=None,
        test=None,
        prepare=Normalize(255.0),
        noise="given",
    )
    method = mlc.methods.mlc(
        model=mlc.models.MLP(10, (32, 16)), lcn=mlc.models.LabelCorrectionNetwork(10, 16, 16),
        tx=mlc.sgd(0.01), meta_tx=mlc.amsgrad(1e-3),
    )  # fmt: skip
    run = create_run(
        description={"num_paths": num_paths}, prefix="", dataset=dataset, method=method,
        settings=Settings(
            num_steps=NUM_STEPS, noisy_batch_size=32, clean_batch_size=16,
            max_exported_labels=MAX_EXPORTED,
        ),
        augment=True,
    )  # fmt: skip
    next(run.pipeline.batches(0))
    first = time.perf_counter() - start
    with locked_workdir(workdir) as path:
        (recorder,), _, (of_noisy,) = loop.train_runs(
            [run], [path], formerly={}, show_progress=False
        )
        report.write(run, recorder.progress, of_noisy, path)
    print(
        json.dumps(
            {
                "first_batch_seconds": first,
                "all_seconds": time.perf_counter() - start,
                "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    import tensorflow as tf

    folder = tmp_path_factory.mktemp("images")
    for i in range(6):
        pixels = np.random.default_rng(i).integers(0, 256, (40 + i, 60, 3)).astype(np.uint8)
        encode, suffix = [(tf.io.encode_jpeg, "jpg"), (tf.io.encode_png, "png")][i % 2]
        folder.joinpath(f"{i}.{suffix}").write_bytes(encode(pixels).numpy())
    return folder


def _measured(folder, num_paths, workdir):
    result = subprocess.run(
        [sys.executable, __file__, str(folder), str(num_paths), str(workdir)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    exported = (workdir / "corrected_labels.csv").read_text().splitlines()
    assert len(exported) == 1 + min(num_paths - 100, MAX_EXPORTED)
    return json.loads(result.stdout)


@pytest.mark.slow
def test_a_million_paths_cost_an_index_and_not_their_pixels(folder, tmp_path, record_property):
    few, many = (_measured(folder, n, tmp_path / str(n)) for n in (1_000, 1_000_000))
    for name in few:
        record_property(name, (few[name], many[name]))
        print(f"{name}: {few[name]:.4g} with 1,000 paths, {many[name]:.4g} with 1,000,000")
    assert many["peak_bytes"] - few["peak_bytes"] < 2 * GIGABYTE


@pytest.mark.slow
def test_the_benchmark_holds_the_loader_against_bare_tf_data(tmp_path):
    root = pathlib.Path(__file__).parents[1]
    command = [sys.executable, "-m", "experiments.speed.loader_benchmark", f"--workdir={tmp_path}"]
    settings = ["--image_size=32", "--num_files=96", "--batches=2", "--rounds=2"]
    result = subprocess.run([*command, *settings], capture_output=True, text=True, cwd=root)
    assert result.returncode == 0, result.stderr
    assert "packed over tf.data images/s" in result.stdout
    assert result.stdout.strip() == (tmp_path / "loader_benchmark.md").read_text().strip()
    rows = (tmp_path / "loader_benchmark.csv").read_text().splitlines()
    assert len(rows) == 3 and rows[0].startswith("image_size,num_files,batches,batch_size,round")


if __name__ == "__main__":
    sys.path.insert(0, str(pathlib.Path(__file__).parents[1]))
    _main(sys.argv[1], int(sys.argv[2]), sys.argv[3])
