"""Convert T5 and DeBERTa-v3 between Hugging Face directories and t0jax checkpoints.

python -m scripts.convert to-hf CHECKPOINT OUT [--dtype bfloat16]
python -m scripts.convert to-hf CHECKPOINT OUT --task glue/sst2      one task of a multitask encoder, a stock model
python -m scripts.convert to-hf CHECKPOINT OUT --adapters OUT2       the backbone, and all its heads in OUT2
python -m scripts.convert from-hf DIR OUT [--adapters DIR2] [--modules tasks.tasksource] [--allow_pickle]
python -m scripts.convert check CHECKPOINT DIR [--adapters DIR2]
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t0jax import config

if TYPE_CHECKING:
    import jax

    from t0jax import models
    from t0jax.checkpoint import LoadedModel

TOLERANCE = 1e-4
"""Of logits, for sums in another order; the weights themselves are equal."""


def main(argv: Sequence[str]) -> int:
    """Returns 0, or 1 when `check` finds a difference."""
    args = _parser().parse_args(argv)
    return args.run(args)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m scripts.convert",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True)
    _add_export(commands.add_parser("to-hf", help="write what transformers' from_pretrained reads"))
    _add_import(commands.add_parser("from-hf", help="write a t0jax run folder at step 0"))
    check_ = commands.add_parser("check", help="compare an export's logits with the checkpoint's")
    check_.add_argument("checkpoint", type=Path, help="what was exported")
    check_.add_argument("dir", type=Path, help="the export")
    check_.add_argument("--adapters", type=Path, help="the folder of its heads, if they have one")
    check_.set_defaults(run=check)
    return parser


def _add_export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="a run folder or one of its checkpoints")
    parser.add_argument("out", type=Path, help="new or empty, or an earlier export")
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument(
        "--vocabulary", type=Path, help="a SentencePiece model; the checkpoint's own"
    )
    parser.add_argument("--task", help="write one task of a multitask encoder as a stock model")
    parser.add_argument("--adapters", type=Path, help="folder for all heads apart from the model")
    parser.set_defaults(run=export)


def _add_import(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("dir", type=Path, help="config.json and model.safetensors")
    parser.add_argument("out", type=Path, help="new or empty")
    parser.add_argument(
        "--allow_pickle", action="store_true", help="read pytorch_model.bin too; needs torch"
    )
    parser.add_argument("--adapters", type=Path, help="folder of the tasks' heads, if apart")
    parser.add_argument(
        "--modules", nargs="+", default=[], help="of tasks, for names of labels the files leave out"
    )
    parser.set_defaults(run=import_)


def export(args: argparse.Namespace) -> int:
    from t0jax import checkpoint, convert

    _check_targets(args.out, args.adapters)
    model = checkpoint.load_model(args.checkpoint, _mesh())
    vocabulary = args.vocabulary or model.vocabulary
    what = (model.params, model.network.config)
    where = (args.out, args.dtype, vocabulary)
    if args.adapters is not None:
        convert.save_adapters(*what, args.adapters, args.dtype)
        task = args.task or convert.main_task(model.network.config)
        convert.save_task(*what, task, *where, fold=False)
    elif args.task is not None:
        convert.save_task(*what, args.task, *where)
    else:
        convert.save_params(*what, *where)
    tokenizer = "with tokenizer files" if vocabulary else "without tokenizer files (no vocabulary)"
    print(f"{args.out}: {args.dtype}, {tokenizer}, read back and equal")
    return 0


def _check_targets(out: Path, adapters: Path | None) -> None:
    """Before anything is written: neither folder may hold something else, nor one the other."""
    from t0jax import convert

    convert.check_replaceable(out)
    if adapters is None:
        return
    convert.check_replaceable(adapters)
    one, other = out.resolve(), adapters.resolve()
    if one.is_relative_to(other) or other.is_relative_to(one):
        raise convert.ConvertError(
            f"{out} and --adapters {adapters} would replace each other; choose folders side by side"
        )


def import_(args: argparse.Namespace) -> int:
    from t0jax import checkpoint
    from t0jax.data.registry import known_heads

    model = checkpoint.load_model(
        args.dir,
        _mesh(),
        allow_pickle=args.allow_pickle,
        adapters=args.adapters,
        known=known_heads(args.modules),
    )
    checkpoint.save_model(args.out, model.params, model.network.config, model.vocabulary)
    print(f"{args.out}: a t0jax checkpoint at step 0")
    return 0


def check(args: argparse.Namespace) -> int:
    """Runs both models on the same random tokens; weights of a bfloat16 export are rounded in both."""
    from t0jax import checkpoint, convert

    mesh = _mesh()
    exported = checkpoint.load_model(args.dir, mesh, adapters=args.adapters)
    original = checkpoint.load_model(args.checkpoint, mesh, exported.network.config)
    dtype = convert.stored_dtype(args.dir)
    difference = convert.logit_difference(
        (exported.network, exported.params), _same_tasks(original, exported), dtype
    )
    equal = difference <= TOLERANCE
    verdict = "equal" if equal else f"NOT EQUAL (more than {TOLERANCE})"
    print(f"{args.dir} ({dtype}): largest difference of logits {difference:.3g}: {verdict}")
    return 0 if equal else 1


def _same_tasks(
    original: "LoadedModel", exported: "LoadedModel"
) -> "tuple[models.Network, models.Params]":
    """The original, or of a multitask encoder the one task that was exported alone."""
    from t0jax import convert
    from t0jax.models import build

    network, tasks = original.network, exported.network.config.heads
    if len(tasks) != 1 or tasks == network.config.heads:
        return network, original.params
    params, config = convert.one_task(original.params, network.config, tasks[0].task)
    return build(config), params


def _mesh() -> "jax.sharding.Mesh":
    from t0jax import sharding

    return sharding.make_mesh(config.Mesh(data=1, fsdp=-1))


if __name__ == "__main__":
    config.run_script(main)
