"""Verbs of cohorts: cohort build, convert, export, check, duplicates, show."""

import sys
from argparse import Namespace
from contextlib import nullcontext
from pathlib import Path

from chexstudy.cli.parser import STUDY, Verb, option, run_options, verb
from chexstudy.cli.run import run_chosen
from chexstudy.cli.tables import lay_out
from chexstudy.paths import resolve_user_path

cohort = Verb(
    "cohort",
    "build, convert, export, check or show a cohort",
    "A cohort is a table with one row an image: ids, split, view, report, and one column a finding\n"
    "(present 1, absent 0, uncertain -1, not stated empty).",
)


@verb(
    "cohort build",
    "build a cohort from a source",
    option("--source X", "where the images come from: phantom, or one of `chexstudy cohort sources`"),
    option("--data-root X", "the folder that holds the source's images and tables"),
    option("--manifest FILE", "many sources at once: a YAML file that lists them (see docs/using.md)"),
    option("--size N", "pixels on a side of the stored images"),
    *run_options("that of the study, else of the source, else demo"),
)
def build(options: Namespace) -> None:
    """Run 01_build_cohort: read a source, split its patients, put unreadable images in quarantine, store pixels.

    examples:
      chexstudy cohort build --source phantom --study drawn
      chexstudy cohort build --source nlm_tb --data-root ~/nlm_tb --study tb --size 96
      chexstudy cohort build --source folder --data-root ~/mine --study mine     (with ~/mine/cohort.yaml)
      chexstudy cohort build --source webdataset --data-root '~/shards/*.tar' --study shards
      chexstudy cohort build --manifest cohort.yaml --study joint

    writes: runs/<study>/cohort.parquet, quarantine.parquet, pixels/, and images/ of webdataset or huggingface
    """
    from chexstudy.runs import Run
    from chexstudy.workflow.identity import read_identity
    from chexstudy.workflow.profiles import list_profiles

    if options.manifest is not None:
        if options.source is not None or options.data_root is not None:
            options.parser.error("--manifest names its sources and folders: give it without --source and --data-root")
        options.source, options.data_root = "joint", options.manifest
    if options.source not in (None, "phantom", "joint"):
        from chexstudy.cohort.adapters import require_source

        require_source(options.source)
    if options.profile is None:
        # Real images under the default study's name would end what was drawn there.
        if options.study is None and options.source not in (None, "phantom"):
            options.study = options.source
        if options.source in list_profiles() and read_identity(Run(options.study)) is None:
            options.profile = options.source
    named = {"source": options.source, "data_root": options.data_root, "image_size": options.size}
    options.parameter = [*options.parameter, *((name, value) for name, value in named.items() if value is not None)]
    run_chosen(options, ["01_build_cohort"])


@verb(
    "cohort convert",
    "write the pixel store of a cohort at a size of your choice",
    option("--study S", "the study whose cohort is converted"),
    option("--cohort TABLE.parquet", "a cohort table of no study"),
    option("--root FOLDER", "where its relative image paths start (default: its folder)"),
    option("--out FOLDER", "where its store is written"),
    option("--size N", "pixels on a side of the stored images", type=int),
    option("--fit", "how images are made square, crop as published", choices=("crop", "pad"), default="crop"),
    option("--workers N", "processes that read images (default: one a core)", type=int),
    option("--shard-images N", "images a shard (default: about 256 MB)", type=int),
    option("--check", "compare the hash of every shard; write nothing"),
)
def convert(options: Namespace) -> None:
    """Read every image of a cohort once, check and resize it, and write the pixels as shards of uint8 arrays, with
    an index and hashes. What cannot be used goes to quarantine and is counted. A conversion that was stopped,
    by a power cut too, goes on at the first shard that is not finished when the command is given again.

    With --study, the study's own store is written anew. With --cohort, the store of any cohort table is written
    to any folder. With --check, nothing is written: every shard is read and its hash compared.

    examples:
      chexstudy cohort convert --study tb --size 378
      chexstudy cohort convert --cohort cohort.parquet --root ~/images --out ~/store --size 224 --workers 8
      chexstudy cohort convert --study tb --check

    writes: pixels/ (shard-00000.npy ..., index.parquet, manifest.json), cohort.parquet, quarantine.parquet in
            runs/<study>/ or in --out
    """
    from chexstudy.cohort.pixels.convert import StoreFolder, convert_cohort, read_requested_cohort
    from chexstudy.cohort.pixels.store import plan_pixel_store, verify_pixel_store
    from chexstudy.cohort.table import read_cohort
    from chexstudy.runs import Run
    from chexstudy.workflow.identity import settle_store
    from chexstudy.workflow.locks import hold_study

    refuse, is_study = options.parser.error, options.study is not None
    if is_study and (options.cohort or options.out or options.root):
        refuse("--study has a cohort and a place of its own: give it without --cohort, --root and --out")
    if not is_study and not options.out:
        refuse("say what to convert: --study S, or --cohort TABLE.parquet and --out FOLDER")
    run = Run(options.study) if is_study else StoreFolder(resolve_user_path(options.out))
    if options.check:
        shards = verify_pixel_store(run)
        print(f"{run.path('pixels')}: {shards} shard{'s' * (shards > 1)}, every hash as written.")
        return
    if options.size is None:
        refuse("--size says how many pixels a side the stored images have, for example --size 378")
    if not is_study and not options.cohort:
        refuse("--cohort names the table to convert, for example --cohort cohort.parquet")
    with hold_study(run, "`chexstudy cohort convert`") if is_study else nullcontext():
        if is_study:
            table, root = read_requested_cohort(run), run.folder
        else:
            path = resolve_user_path(options.cohort)
            table, root = read_cohort(path), resolve_user_path(options.root) if options.root else path.parent
        plan = plan_pixel_store(run, table, options.size, options.fit, root, options.shard_images)
        convert_cohort(run, plan, options.workers)
        if is_study:
            settle_store(run, options.size, options.fit)


@verb(
    "cohort export",
    "write a cohort for other programs",
    STUDY,
    option("--to", "the format", required=True, choices=("webdataset", "huggingface")),
    option("--out FOLDER", "where to: a new or an empty folder", required=True),
    option("--shard-images N", "images a shard", default=1000),
    option("--with-reports", "reports leave too"),
    option("--with-patient-ids", "ids of patients and studies leave, in place of new numbers"),
    option("--original-images", "the image files as they are, in place of the stored pixels"),
)
def export(options: Namespace) -> None:
    """Write the pairs of a study's cohort as WebDataset tar shards (KEY.png, KEY.json, KEY.txt), or as a folder
    that Hugging Face's datasets.load_dataset reads. Images are the stored pixels, without loss. Reports and the
    ids of patients and studies stay out unless asked for. A killed export goes on; two give the same bytes.

    examples:
      chexstudy cohort export --study demo --to webdataset --out ~/demo-shards
      chexstudy cohort export --study demo --to huggingface --out ~/demo-dataset --with-reports
      chexstudy cohort build --source webdataset --data-root ~/demo-shards --study again

    writes: the shards, and export.json, which says what they hold
    """
    from chexstudy.cohort.export import ExportOptions, export_cohort
    from chexstudy.runs import Run

    chosen = ExportOptions(
        options.to, options.shard_images, options.with_reports, options.with_patient_ids, options.original_images
    )
    folder = resolve_user_path(options.out)
    done = export_cohort(Run(options.study), folder, chosen)
    known = done.shards - done.written
    print(f"{done.pairs} pairs in {done.shards} shards in {folder}{f' ({known} were there)' if known else ''}.")
    print(done.left_out)


@verb(
    "cohort check",
    "check a cohort table, or a folder of your own",
    option(
        "cohort STUDY|TABLE.parquet|FOLDER|MANIFEST", "a study's name, or the path of a table, a folder or a manifest"
    ),
    option("--source X", "what the folder is, one of `chexstudy cohort sources` (default: told by what it holds)"),
)
def check(options: Namespace) -> int:
    """Hold a study's cohort table against the contract: columns, label values, unique ids, one split a patient.
    For a folder of your own (images, a table, cohort.yaml) or another source, list everything that is wrong
    before an image is read: rows without an image, images without a row, copies, empty files, splits without
    patients, findings of one class, columns that nothing uses.

    examples:
      chexstudy cohort check demo
      chexstudy cohort check ~/mine
      chexstudy cohort check ~/nih --source nih

    writes: nothing; exit status 2 if there is a problem that would stop a run, 0 with remarks alone
    """
    from chexstudy.cohort.check import check_source, check_table
    from chexstudy.cohort.table import finding_columns, read_cohort

    path = resolve_user_path(options.cohort)
    is_manifest = path.suffix in (".yaml", ".yml")
    is_source = options.source or is_manifest or (path.is_dir() and not (path / "cohort.parquet").is_file())
    found = check_source(path, options.source) if is_source else check_table(read_cohort(_find_table(options.cohort)))
    if found.remarks:
        print("remarks:", *found.remarks, sep="\n  ")
    if found.problems:
        print(*found.problems, sep="\n", file=sys.stderr)
        return 2
    print(
        f"{options.cohort} keeps the contract: {len(found.cohort)} images of {found.cohort.patient_id.nunique()} "
        f"patients, {len(finding_columns(found.cohort))} findings."
    )
    return 0


@verb("cohort duplicates", "find copies and second exposures", option("study STUDY", "a study's name"))
def duplicates(options: Namespace) -> None:
    """Find the images of a study that show one exposure under several names, whatever was done to a copy since, and
    the second exposures within a study. Count them by the sources and splits that a group lies in.

    examples:
      chexstudy cohort duplicates demo
      chexstudy run 01 --study demo -p duplicates one_per_group --change duplicates    (sets copies aside)

    writes: runs/<study>/duplicates.parquet
    """
    from chexstudy.cohort.near_duplicates import count_near_duplicates, tabulate_near_duplicates
    from chexstudy.runs import Run
    from chexstudy.workflow.locks import hold_study

    run = Run(options.study)
    with hold_study(run, "`chexstudy cohort duplicates`"):
        groups = tabulate_near_duplicates(run)
    print(lay_out(count_near_duplicates(groups)) if len(groups) else "No image repeats another.")


@verb(
    "cohort sources",
    "list the data sets and formats that are read",
    option("source SOURCE", "one of them, told whole", nargs="?"),
)
def sources(options: Namespace) -> None:
    """Name every source a cohort can be built from; of one, also how much it holds, its terms, where it is had, what
    its folder must hold, what it can be asked for in a manifest, and which other sources hold its images.

    examples:
      chexstudy cohort sources
      chexstudy cohort sources mimic_cxr

    writes: nothing
    """
    from chexstudy.cohort.adapters import describe_source, tabulate_sources

    if options.source is None:
        print(lay_out(tabulate_sources()[["source", "what it is"]]))
        return
    print(*(f"{name}: {told}" for name, told in describe_source(options.source).items() if told), sep="\n")


@verb(
    "cohort show",
    "count what a cohort holds",
    option("cohort STUDY|TABLE.parquet", "a study's name, or a table's path"),
)
def show(options: Namespace) -> None:
    """Count images, patients and reports by source and split, and the labels of every finding.

    example:
      chexstudy cohort show demo

    writes: nothing
    """
    import pandas as pd

    from chexstudy.cohort.table import OUTCOME_PREFIX, YEARS_SUFFIX, finding_columns, outcome_names, read_cohort

    table = read_cohort(_find_table(options.cohort))
    groups = table.groupby(["source", "split"], sort=True)
    counts = groups.agg(
        images=("image_id", "size"), patients=("patient_id", "nunique"), studies=("study_id", "nunique")
    )
    counts["with report"] = groups["report"].agg(lambda reports: int((reports.str.strip() != "").sum()))
    print(f"{len(table)} images of {table.patient_id.nunique()} patients\n\n{lay_out(counts.reset_index())}")
    labels = table[finding_columns(table)]
    if labels.shape[1]:
        present, uncertain, absent = labels.eq(1).sum(), labels.eq(-1).sum(), labels.eq(0).sum()
        counts = {"present": present, "uncertain": uncertain, "absent": absent, "not stated": labels.isna().sum()}
        counts = pd.DataFrame(counts).sort_values("present", ascending=False, kind="stable")
        print("\n" + lay_out(counts.rename_axis("finding").reset_index()))
    names = outcome_names(table)
    if names:
        events = table[[OUTCOME_PREFIX + name for name in names]]
        years = [table.get(f"{OUTCOME_PREFIX}{name}{YEARS_SUFFIX}") for name in names]
        counts = {"happened": events.eq(1).sum(), "did not": events.eq(0).sum(), "unknown": events.isna().sum()}
        counts = pd.DataFrame(counts).assign(
            **{"years observed, median": ["" if one is None else f"{one.median():.1f}" for one in years]}
        )
        print("\n" + lay_out(counts.set_axis(names).rename_axis("outcome").reset_index()))


def _find_table(named: str) -> Path:
    """The cohort table meant by a study's name, a study's folder or a table's path."""
    from chexstudy.runs import Run

    path = resolve_user_path(named)
    if (path / "cohort.parquet").is_file():
        return path / "cohort.parquet"
    if path.is_file() or path.suffix or len(Path(named).parts) != 1:
        return path
    return Run(named).require("cohort.parquet")
