import csv

from xlm.callbacks import MetricsFile


def read(path):
    with open(path, newline="") as file:
        return [{key: value for key, value in row.items() if value} for row in csv.DictReader(file)]


def write(path, *rows):
    logger = MetricsFile(path)
    for step, numbers in rows:
        logger.log_metrics(numbers, step)
    logger.finalize("success")


def test_numbers_of_one_step_share_a_row_and_new_ones_get_a_column(tmp_path):
    write(tmp_path / "run/m.csv", (1, {"a": 1.5}), (1, {"b": 2}), (2, {"a": 3.0}), (3, {"c": 4.0}))
    assert read(tmp_path / "run/m.csv") == [
        {"step": "1", "a": "1.5", "b": "2"},
        {"step": "2", "a": "3.0"},
        {"step": "3", "c": "4.0"},
    ]


def test_a_row_that_was_already_written_takes_more_numbers(tmp_path):
    logger = MetricsFile(tmp_path / "m.csv")
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    logger.log_metrics({"b": 2.0}, 1)
    logger.save()
    logger.save()
    assert read(tmp_path / "m.csv") == [{"step": "1", "a": "1.0", "b": "2.0"}]


def test_a_finished_run_that_is_looked_at_again_adds_to_its_last_row(tmp_path):
    path = tmp_path / "m.csv"
    write(path, (1, {"a": 1.0}), (2, {"a": 2.0, "v": 3.0}))
    write(path, (2, {"v": 4.0}))
    assert read(path) == [{"step": "1", "a": "1.0"}, {"step": "2", "a": "2.0", "v": "4.0"}]


def test_a_resumed_run_goes_on_at_its_step(tmp_path):
    path = tmp_path / "m.csv"
    write(path, (1, {"a": 1.0}), (2, {"a": 2.0}), (3, {"a": 3.0, "b": 1.0}))
    logger = MetricsFile(path)
    logger.rewind(2)
    assert [row["step"] for row in read(path)] == ["1", "2"]
    logger.log_metrics({"v": 9.0}, 2)
    logger.log_metrics({"a": 4.0}, 3)
    logger.save()
    assert read(path) == [{"step": "1", "a": "1.0"}, {"step": "2", "a": "2.0", "v": "9.0"}, {"step": "3", "a": "4.0"}]


def test_a_run_that_begins_drops_what_a_run_without_a_checkpoint_left(tmp_path):
    path = tmp_path / "m.csv"
    write(path, (0, {"a": 1.0}), (1, {"a": 1.0}))
    MetricsFile(path).rewind(0)
    assert read(path) == []


def test_a_last_line_cut_by_a_kill_is_dropped(tmp_path):
    path = tmp_path / "m.csv"
    write(path, (1, {"a": 1.0, "b": 1.0}), (2, {"a": 2.0, "b": 1.0}))
    path.write_text(path.read_text()[:-6])
    MetricsFile(path).rewind(2)
    assert [row["step"] for row in read(path)] == ["1"]


def test_a_full_disk_costs_rows_not_the_run_and_is_said_once(tmp_path, caplog):
    (tmp_path / "file").write_text("")
    logger = MetricsFile(tmp_path / "file/m.csv")
    logger.log_metrics({"a": 1.0}, 1)
    logger.save()
    logger.log_metrics({"a": 1.0}, 2)
    logger.save()
    (said,) = caplog.messages
    assert said.startswith("metrics are lost: ")
