"""The paper's tables as commands: what they will cost, what they write, and going on."""

import csv
import pathlib

import clothing1m_replica
import pytest

from configs import clothing1m, digits
from experiments.paper import paper_tables
from mlc_jax.config import METHODS

ROOT = pathlib.Path(__file__).parents[1]
SMALL = {
    "dataset.image_size": 16, "model.name": "mlp", "model.dtype": "float32", "num_steps": 10,
    "noisy_batch_size": 8, "clean_batch_size": 16, "eval_batch_size": 64, "lcn.hidden_size": 8,
    "lcn.embedding_size": 8, "main_optimizer.learning_rate": 0.01,
    "meta_gradient.num_inner_steps": 1,
}  # fmt: skip


def test_costs_are_those_of_the_passes():
    config = digits.get_config()
    config.num_epochs, config.noisy_batch_size, config.clean_batch_size = 10, 100, 50
    rows = paper_tables.cost(config, ["cross_entropy", "glc", "mlc", "mlnt"], 1000, 3)
    by_method = {row["method"]: row for row in rows}
    assert [row["steps"] for row in rows] == [100, 200, 100, 100]  # GLC trains twice.
    assert by_method["cross_entropy"]["passes"] == pytest.approx(3 * 100 * 150 * 3 / 1e6)
    assert by_method["mlc"]["pflop"] == 3 * by_method["cross_entropy"]["pflop"]
    assert by_method["mlnt"]["passes"] > by_method["mlc"]["passes"]
    # Two FLOPs for each weight of 64-128-64-10, and little more.
    weights = 64 * 128 + 128 * 64 + 64 * 10
    per_pass = by_method["mlc"]["pflop"] * 1e15 / (by_method["mlc"]["passes"] * 1e6)
    assert 2 * weights <= per_pass < 2.2 * weights
    table = paper_tables.cost_table(rows)
    assert "| all | 12 |" in table and "hours at 50 TFLOP/s" in table


@pytest.mark.slow
def test_a_forward_pass_of_resnet_50_has_eight_gflop(standard_promotion):
    assert paper_tables._forward_flops(clothing1m.get_config()) == pytest.approx(8.2e9, rel=0.05)


def test_means_are_over_noise_first_and_seeds_then():
    rows = [
        {"method": "mlc", "seed": seed, "last_test_accuracy": accuracy}
        | dict.fromkeys(("selected_test_accuracy", "best_test_accuracy"), None)
        | dict.fromkeys(("given_label_accuracy", "corrected_label_accuracy"), 0.5)
        for seed, accuracy in ((0, 0.5), (0, 0.7), (1, 0.7), (1, 0.9))
    ]
    text = paper_tables.beside_published(rows, ["mlc", "glc"], {"mlc": 75.78})
    assert "| mlc | 75.78 | 70.0 ± 14.1 | - | - | 50.0 ± 0.0 | 50.0 ± 0.0 | 4 |" in text
    assert "| glc | - | - | - | - | - | - | 0 |" in text


def test_published_methods_are_ours():
    for published in (*paper_tables.TABLE2.values(), paper_tables.TABLE3):
        assert set(published) <= set(METHODS)


@pytest.fixture
def of_replica(tmp_path):
    """Arguments of `experiments.paper.table3`."""
    clothing1m_replica.build(tmp_path / "data")
    fields = SMALL | {"dataset.cache_dir": tmp_path / "cache"}
    return [
        f"--data={tmp_path / 'data'}", f"--workdir={tmp_path / 'run'}",
        f"--config={ROOT / 'configs' / 'clothing1m.py'}",
        *(f"--config.{name}={value}" for name, value in fields.items()),
    ]  # fmt: skip


@pytest.mark.slow
def test_table_3_by_two_workers(run_program, of_replica, tmp_path, standard_promotion, monkeypatch):
    """Two trainings on pictures: that workers share the table, and that it says what is published.

    That every method trains: tests/methods_test.py, and on pictures MLC alone.
    """
    required = ["data", "workdir"]
    code, out, err = run_program(
        "experiments.paper.table3", *of_replica, "--cost_only", required=required
    )
    assert code == 0, err
    for name in ("cross_entropy", "clean_only", *paper_tables.TABLE3):
        assert f"| {name} | 1 | " in out
    assert "| glc | 1 | 20 |" in out and "| mlc | 1 | 10 |" in out
    assert not (tmp_path / "run").exists()
    arguments = [*of_replica, "--methods=glc,mlc"]
    for worker in range(2):
        code, out, err = run_program(
            "experiments.paper.table3", *arguments, f"--shard={worker}/2", required=required
        )
        assert code == 0 and f"Shard {worker} of 2: 1 of 2 runs." in out, err
        assert not (tmp_path / "run" / "table3.md").exists()
    code, out, err = run_program(
        "experiments.paper.table3", *arguments, "--collect", required=required
    )
    assert code == 0 and "not finished" not in out, err
    text = (tmp_path / "run" / "table3.md").read_text()
    assert text in out and "| glc | 73.69 |" in text and "| mlc | 75.78 |" in text
    rows = list(csv.DictReader((tmp_path / "run" / "table3.csv").open()))
    assert [row["method"] for row in rows] == ["glc", "mlc"]
    assert all(0 <= float(row["last_test_accuracy"]) <= 1 for row in rows)
    assert all(row["corrected_label_accuracy"] for row in rows)
    # What is finished is not run again.
    from mlc_jax.commands import train

    monkeypatch.setattr(train, "train_together", None)
    code, out, err = run_program("experiments.paper.table3", *arguments, required=required)
    # Where no worker was, the title names the devices.
    assert code == 0 and text.partition("\n\n")[2] in out, err


def test_table_3_needs_its_data(run_program, of_replica):
    code, _, err = run_program(
        "experiments.paper.table3", *of_replica, "--data=nowhere", required=["data", "workdir"]
    )
    assert code == 2 and "--data: 'nowhere/noisy_train_key_list.txt' cannot be read" in err


@pytest.mark.slow
def test_table_2(run_program, tmp_path, standard_promotion):
    """Four trainings of ten steps: the whole way from flags to the table."""
    settings = ["num_steps=10", "model.mlp.hidden_sizes=(8,)", "noisy_batch_size=64"]
    settings.append("clean_batch_size=32")
    arguments = [
        "--data=digits", f"--workdir={tmp_path}", "--methods=mlc", "--levels=0.2,0.4",
        *(f"--override={setting}" for setting in settings),
    ]  # fmt: skip
    required = ["data", "workdir"]
    code, out, err = run_program("experiments.paper.table2", *arguments, required=required)
    assert code == 0, err
    assert "| mlc | 4 | 10 |" in out  # Two kinds of noise at two levels.
    text = (tmp_path / "table2.md").read_text()
    assert text.startswith("digits, mean over uniform noise 0.2 to 0.4, flip noise 0.2 to 0.4, ")
    assert f"({', '.join(settings)})" in text and "| mlc | - |" in text
    assert len(list(csv.DictReader((tmp_path / "table2.csv").open()))) == 4


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("--data=mnist:here", "--data: got 'mnist:here', expected NAME:DIRECTORY"),
        ("--data=cifar10", "--data: got 'cifar10', expected NAME:DIRECTORY"),
        ("--override=num_epoch=3", "--override: got 'num_epoch=3', expected FIELD=VALUE"),
        ("--override=num_epochs=many", "--override: got 'num_epochs=many'"),
    ],
)
def test_bad_flags_of_table_2(run_program, tmp_path, bad, message):
    code, _, err = run_program(
        "experiments.paper.table2", "--data=digits", f"--workdir={tmp_path}", bad,
        required=["data", "workdir"],
    )  # fmt: skip
    assert code == 2 and message in err


@pytest.mark.slow
def test_texts_and_images_have_their_costs(run_program, tmp_path):
    """Data need not be there for that."""
    import json

    shape = {
        "model_type": "bert", "vocab_size": 60, "hidden_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 32, "max_position_embeddings": 128,
        "type_vocab_size": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(shape))
    for texts in ("finetuned", "frozen"):
        code, out, err = run_program(
            "experiments.paper.table2", "--data=ag_news:there,cifar10:there", "--cost_only",
            f"--workdir={tmp_path}", f"--checkpoint={tmp_path}", f"--texts={texts}",
            required=["data", "workdir"],
        )  # fmt: skip
        assert code == 0, err
        assert "ag_news\n\n| method | runs |" in out and "| mlc | 20 |" in out
