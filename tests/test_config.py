"""Configuration: files, overrides, and what a mistake is answered with."""

import pytest

from t0jax import config
from t0jax.config import Config, ConfigError


@pytest.fixture
def recipe(tmp_path):
    def write(text):
        path = tmp_path / "recipe.yaml"
        path.write_text(text)
        return str(path)

    return write


def parse(*argv, **options):
    return config.parse(argv, "test", **options)


def test_overrides_win_over_the_file_and_the_file_over_defaults(recipe):
    path = recipe("model: {d_model: 64, d_ff: 96}\ndata: {modules: [tasks.toy]}\n")
    settings, _ = parse("--config", path, "--model.d_ff", "128", "--data.pack=false")
    assert (settings.model.d_model, settings.model.d_ff) == (64, 128)
    assert settings.model.num_heads == Config().model.num_heads
    assert settings.data.modules == ("tasks.toy",)
    assert settings.data.pack is False


def test_every_key_reaches_the_configuration_it_names(recipe):
    base = Config()
    for key in ("train.steps", "data.batch_size", "evaluate.batch_size", "optimizer.warmup_steps"):
        section, name = key.split(".")
        settings, _ = parse(f"--{key}", "640")
        assert getattr(getattr(settings, section), name) == 640
        assert getattr(getattr(base, section), name) != 640


def test_scripts_add_options_of_their_own():
    settings, options = parse("--model_path", "m", "--train.steps", "3", model_path={"type": str})
    assert (settings.train.steps, options.model_path) == (3, "m")


def test_help_keeps_the_lines_of_a_description_and_says_what_model_takes(capsys):
    told = []
    for of_model in (True, False):
        with pytest.raises(SystemExit):
            config.parse(["--help"], "What it does.\n\n  --one\n  --two", of_model=of_model)
        told.append(capsys.readouterr().out)
    assert all("[options]\n\nWhat it does.\n\n  --one\n  --two\n" in text for text in told)
    assert "--model M [options]" in told[0]
    assert "--model M             A run folder" in told[0]
    assert "--model CONFIG" in told[1]


@pytest.mark.parametrize(
    ("argv", "hint"),
    [
        (["--train.stps", "3"], "did you mean 'train.steps'"),
        (["--optimiser.learning_rate", "1"], "did you mean 'optimizer.learning_rate'"),
        (["--train.steps", "many"], "train.steps"),
        (["--data.batch_size", "30"], "data.shards 8"),
        (["--model.attention", "cudnn"], "needs model.dtype bfloat16"),
        (
            [
                *("--model.attention", "cudnn", "--model.dtype", "bfloat16"),
                *("--data.input_length", "33"),
            ],
            "even lengths",
        ),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
        (["--train.eval_every", "5"], "data.eval_mixture is empty"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_key_and_the_way_out(argv, hint):
    with pytest.raises(ConfigError, match=hint):
        parse(*argv)


def test_an_unknown_key_in_a_file_names_the_file_and_the_nearest_key(recipe):
    path = recipe("optimizer: {learning_rat: 1e-3}\n")
    with pytest.raises(ConfigError, match=r"recipe\.yaml.*did you mean 'optimizer\.learning_rate'"):
        parse("--config", path)


def test_a_file_that_is_no_mapping_is_refused(recipe):
    with pytest.raises(ConfigError, match="not a mapping"):
        parse("--config", recipe("- a\n- b\n"))
    with pytest.raises(ConfigError, match="cannot be read as YAML"):
        parse("--config", recipe("model: {d_model: ["))


def test_yaml_does_not_run_code(recipe, tmp_path):
    marker = tmp_path / "ran"
    with pytest.raises(ConfigError):
        parse("--config", recipe(f"model: !!python/object/apply:os.mkdir ['{marker}']\n"))
    assert not marker.exists()


def test_saved_configurations_come_back_equal():
    settings, _ = parse("--data.modules", "[a, b]", "--model.num_decoder_layers", "3")
    assert config.from_dict(config.to_dict(settings), "here") == settings
