"""Convert T5 between Hugging Face directories and t0jax checkpoints.

python -m scripts.convert to-hf CHECKPOINT OUT [--dtype bfloat16]
python -m scripts.convert from-hf DIR OUT [--allow_pickle]
python -m scripts.convert check CHECKPOINT DIR
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from t0jax import config

if TYPE_CHECKING:
    import jax

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
    to_hf = commands.add_parser("to-hf", help="write what transformers' from_pretrained reads")
    to_hf.add_argument("checkpoint", type=Path, help="a run folder or one of its checkpoints")
    to_hf.add_argument("out", type=Path, help="new or empty, or an earlier export")
    to_hf.add_argument("--dtype", choices=["float32", "bfloat16"], default="float32")
    to_hf.add_argument(
        "--vocabulary", type=Path, help="a SentencePiece model; the checkpoint's own"
    )
    to_hf.set_defaults(run=export)
    from_hf = commands.add_parser("from-hf", help="write a t0jax run folder at step 0")
    from_hf.add_argument("dir", type=Path, help="config.json and model.safetensors")
    from_hf.add_argument("out", type=Path, help="new or empty")
    from_hf.add_argument(
        "--allow_pickle", action="store_true", help="read pytorch_model.bin too; needs torch"
    )
    from_hf.set_defaults(run=import_)
    check_ = commands.add_parser("check", help="compare an export's logits with the checkpoint's")
    check_.add_argument("checkpoint", type=Path, help="what was exported")
    check_.add_argument("dir", type=Path, help="the export")
    check_.set_defaults(run=check)
    return parser


def export(args: argparse.Namespace) -> int:
    from t0jax import checkpoint, convert

    model = checkpoint.load_model(args.checkpoint, _mesh())
    vocabulary = args.vocabulary or model.vocabulary
    convert.save_params(model.params, model.network.config, args.out, args.dtype, vocabulary)
    tokenizer = "with tokenizer files" if vocabulary else "without tokenizer files (no vocabulary)"
    print(f"{args.out}: {args.dtype}, {tokenizer}, read back and equal")
    return 0


def import_(args: argparse.Namespace) -> int:
    from t0jax import checkpoint

    model = checkpoint.load_model(args.dir, _mesh(), allow_pickle=args.allow_pickle)
    checkpoint.save_model(args.out, model.params, model.network.config, model.vocabulary)
    print(f"{args.out}: a t0jax checkpoint at step 0")
    return 0


def check(args: argparse.Namespace) -> int:
    """Runs both models on the same random tokens; weights of a bfloat16 export are rounded in both."""
    from t0jax import checkpoint, convert

    mesh = _mesh()
    exported = checkpoint.load_model(args.dir, mesh)
    original = checkpoint.load_model(args.checkpoint, mesh, exported.network.config)
    dtype = convert.stored_dtype(args.dir)
    difference = convert.logit_difference(
        (exported.network, exported.params), (original.network, original.params), dtype
    )
    equal = difference <= TOLERANCE
    verdict = "equal" if equal else f"NOT EQUAL (more than {TOLERANCE})"
    print(f"{args.dir} ({dtype}): largest difference of logits {difference:.3g}: {verdict}")
    return 0 if equal else 1


def _mesh() -> "jax.sharding.Mesh":
    from t0jax import sharding

    return sharding.make_mesh(config.Mesh(data=1, fsdp=-1))


if __name__ == "__main__":
    config.run_script(main)
