from etils.epath import Path

REPOSITORY = Path(__file__).parent.parent.parent


def test_commands_name_experiments_that_are_there_wherever_they_are_listed(
    tmp_path, monkeypatch, cells_of
):
    monkeypatch.chdir(REPOSITORY)
    (config,) = [word for word in cells_of(1)[0].runs[0].command if "--config=" in word]
    assert config.startswith("--config=experiments/cifar10_lt.py:")
    monkeypatch.chdir(tmp_path)
    run = cells_of(1)[0].runs[0]
    (config,) = [word for word in run.command if "--config=" in word]
    assert config.startswith(f"--config={REPOSITORY}/experiments/cifar10_lt.py:")
    assert run.config().data.name == "cifar10"
