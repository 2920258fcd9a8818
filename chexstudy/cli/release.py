"""The verb that makes a trained arm a model for others: release."""

from argparse import Namespace

from chexstudy.cli.parser import SEED, STUDY, option, verb
from chexstudy.paths import resolve_user_path


@verb(
    "release",
    "write a trained arm as a Hugging Face model",
    option("arm ARM", "the trained arm, such as curated or full"),
    STUDY,
    SEED,
    option("--out FOLDER", "where the model goes", required=True),
    option(
        "--accept-rare-tokens",
        "release a vocabulary with tokens from reports of fewer than 5 patients, which may be names",
    ),
)
def release(options: Namespace) -> None:
    """Write the trained pair as a folder that transformers loads where chexstudy is not installed: one file of
    weights, image processor, tokenizer, the Python files they need, and a model card written from the run.
    Nothing is uploaded.

    examples:
      chexstudy release curated --study demo --out curated-model
      chexstudy release full --study demo --seed 1 --out ~/models/full

    writes: --out, which must be new or hold an earlier release
    """
    from chexstudy.release.export import release_arm
    from chexstudy.runs import Run

    folder = resolve_user_path(options.out)
    written = release_arm(Run(options.study), options.arm, options.seed, folder, options.accept_rare_tokens)
    how = "with or without the code in it" if written.plain else "with the code in it"
    print(
        f"{written.folder} loads {how}; its embeddings differ from the trained pair's by at most "
        f"{written.difference:.0e}. Read its README.md, and choose a licence there, before you share it."
    )
