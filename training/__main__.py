"""`python -m training VERB …`: from clean shards to a model and its sounds.

Each verb loads its settings, then calls one function.
"""

import dataclasses
import json
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cluster.learnt import last_name
from cluster.record import ARGS, DRY_RUN, JSON, Summary, run_verb, show_units
from configs.environment import typed
from configs.load import UserError, load_config, run_app
from configs.terminal import counted, log_to_stderr, printable
from configs.verb import with_settings

if TYPE_CHECKING:
    from training.inspect import Line
    from training.runs import Comparison
    from training.settings import TrainConfig


class OutputConfig(Protocol):
    """Settings of a verb that writes an output."""

    output: str


C = TypeVar("C", bound=OutputConfig)
app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)
console = Console(highlight=False, soft_wrap=True, markup=False)


@app.callback()
def main() -> None:
    """Train models on shards, and make sounds with them."""
    log_to_stderr()


@app.command(cls=with_settings("training.settings:TrainConfig"))
def train(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Train a recipe, one model of the chain (docs/recipes.md). Run again to resume."""
    from training.settings import TrainConfig

    config = load_config(TrainConfig, args or [])

    def do(config: "TrainConfig") -> Mapping[str, Any]:
        from training.train import train as run

        return run(config)

    def show(summary: Summary) -> None:
        _show_training(summary)
        if config.recipe == "autoencoder":
            console.print(f"measure it before anything is trained on its latents: {_roundtrip_of(config)}")

    run_in_output("train", args, config, do, show, as_json, dry_run)


@app.command(cls=with_settings("training.precompute:PrecomputeConfig"))
def precompute(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Clips -> latents and image embeddings, same keys. Run again to resume."""
    from training.precompute import PrecomputeConfig

    config = load_config(PrecomputeConfig, args or [])

    def do(config: PrecomputeConfig) -> Mapping[str, Any]:
        from training.precompute import precompute as run

        return dataclasses.asdict(run(config, progress=not as_json))

    summary = run_in_output("precompute", args, config, do, show_units, as_json, dry_run)
    if summary and (summary["failed"] or summary["deferred"]):
        raise typer.Exit(1)


@app.command(cls=with_settings("training.generate:GenerateConfig"))
def generate(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Pictures -> wavs, spectrograms and a page to listen to. Run again to resume."""
    from training.generate import GenerateConfig
    from training.generate import generate as run

    config = load_config(GenerateConfig, args or [])

    def do(config: GenerateConfig) -> Mapping[str, Any]:
        return run(config, progress=not as_json)

    def show(summary: Summary) -> None:
        left_out = counted(len(summary["skipped"]), "picture")
        skipped = f", {left_out} left out" if summary["skipped"] else ""
        before = len(summary["wavs"]) - summary["made"]
        kept = f", {before} of them from before" if before > 0 else ""
        wavs = counted(len(summary["wavs"]), "wav file")
        console.print(f"{wavs} in {config.output}{kept}{skipped}")
        console.print(f"table: {summary['table']}")
        if summary["page"]:
            console.print(f"listen: {summary['page']}")

    run_in_output("generate", args, config, do, show, as_json, dry_run)


@app.command(cls=with_settings("training.evaluation:EvaluateConfig"))
def evaluate(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """Scores with truth= or judge= -> scores.json, judged.json; of an autoencoder, what it loses.

    against=OLDER beside them says what is better and worse; output= and against= alone compare two.
    """
    from training.evaluate import evaluate as run
    from training.evaluate import evaluate_real
    from training.evaluation import EvaluateConfig
    from training.judging.compare import compare_finished, compared
    from training.real_scores import names_judges, score_folders
    from training.roundtrip import is_codec, roundtrip, summary_line

    config = load_config(EvaluateConfig, args or [])
    scored: Callable[[EvaluateConfig], Mapping[str, Any]] = evaluate_real
    show: Callable[[Summary], None] = _show_judged
    if config.generated or config.reference:
        scored = score_folders
    elif config.model and is_codec(config.model):

        def show_codec(summary: Summary) -> None:
            console.print(summary_line(summary))  # type: ignore[arg-type]  # it was a RoundTrip
            if summary.get("against"):
                _show_comparison(summary["against"])

        scored = roundtrip
        show = show_codec
    elif config.against and not config.model:  # of what is there
        run_in_output("evaluate", args, config, compare_finished, _show_comparison, as_json, dry_run)
        return
    elif config.truth or not names_judges(config):
        scored = run
        show = _show_scores

    def do(config: EvaluateConfig) -> Mapping[str, Any]:
        return compared(scored, config)

    run_in_output("evaluate", args, config, do, show, as_json, dry_run)


@app.command(cls=with_settings("training.export:ExportConfig"))
def export(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """A finished diffusion run -> a folder that stock diffusers loads."""
    from training.export import ExportConfig
    from training.export import export as run

    config = load_config(ExportConfig, args or [])

    def show(summary: Summary) -> None:
        loads = "DiffusionPipeline.from_pretrained(…, trust_remote_code=True) loads it"
        console.print(f"wrote {summary['output']}: {loads}")
        console.print(f"license {summary['license']}; README.md says why, and what it was trained on")

    # no record: an exported folder holds what stock diffusers loads, and nothing beside it
    run_in_output("export", args, config, run, show, as_json, dry_run, record=False)


@app.command(cls=with_settings("training.average:AverageConfig"))
def average(args: list[str] = ARGS, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """A run with ema_profiles -> its model by an average of another width."""
    from training.average import AverageConfig
    from training.average import average as run

    config = load_config(AverageConfig, args or [])

    def show(summary: Summary) -> None:
        made = f"up to step {summary['step']}, of {summary['mixed']} stored averages"
        console.print(f"wrote {summary['output']}: width {config.sigma_rel:g} {made}")

    # no record: the folder is a model and nothing else
    run_in_output("average", args, config, run, show, as_json, dry_run, record=False)


@app.command()
def inspect(run: str, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """The checkpoints of a RUN, each checked; exit 1 if one is damaged."""
    from training.inspect import inspect as check

    if dry_run:
        console.print(f"would read and check every checkpoint of {run}, and write nothing")
        return
    checkpoints = check(run)
    if as_json:
        print(json.dumps({"checkpoints": checkpoints}))
    else:
        for checkpoint in checkpoints:
            _show_checkpoint(checkpoint)
        if not checkpoints:
            console.print(f"{run}: no checkpoint yet")
    if any(checkpoint["problem"] for checkpoint in checkpoints):
        raise typer.Exit(1)


@app.command(name="recipe-for")
def recipe_for(data: str, as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """The commands from DATA, clips or a folder of media, to a sound; what is done is ticked off."""
    from cluster.chain import recipe_for as steps_for

    # it only looks: a dry run is the run
    steps = steps_for(data)
    if not steps:
        raise UserError(f"{data}: is in no chain from clips to a sound; give a dataset of clips, or a run")
    if as_json:
        print(json.dumps([step._asdict() for step in steps]))
    for step in steps if not as_json else []:
        console.print(printable(f"[{'x' if step.done else ' '}] {step.command}"))


@app.command(cls=with_settings("training.runs:RunsConfig"))
def runs(
    args: list[str] = typer.Argument(None, metavar="RUN… [name=value…]"),
    as_json: bool = JSON,
    dry_run: bool = DRY_RUN,
) -> None:
    """Runs side by side: losses, validation, scores, time and the settings that differ."""
    from training.runs import RunsConfig, compare
    from training.runs_page import page_of, write_page

    given = args or []
    config = load_config(RunsConfig, [arg for arg in given if "=" in arg])
    chosen = [arg for arg in given if "=" not in arg]
    if dry_run:
        console.print(f"would read {counted(len(chosen), 'run')}, and write {config.output or 'nothing'}")
        return
    compared = compare(chosen, config)
    if config.output:
        write_page(config.output, page_of(compared))
        compared["page"] = config.output
    if as_json:
        print(json.dumps(compared))
    else:
        _show_runs(compared)


@app.command(name="app", cls=with_settings("training.app:AppConfig", argument="model"))
def listen(model: str, args: list[str] = ARGS, dry_run: bool = DRY_RUN) -> None:
    """A page to drop pictures on and hear what MODEL makes of them, on this machine; until Ctrl-C."""
    from training.app import AppConfig, serve

    config = load_config(AppConfig, [f"model={model}", *(args or [])])

    def show(url: str, license: str) -> None:
        console.print(f"listening at {url} (Ctrl-C ends it)")
        console.print(f"license of the model: {license or 'not stated; export writes its model card'}")

    if dry_run:
        console.print(f"would serve {model} at http://{config.host}:{config.port}, and write nothing")
    else:
        serve(config, show)


@app.command()
def probe(as_json: bool = JSON, dry_run: bool = DRY_RUN) -> None:
    """This node's numerics and all-reduce; exit 1 if they are off."""
    from training.probe import probe as run

    if dry_run:
        console.print(
            "would multiply matrices and all-reduce over two processes of this node, and write nothing"
        )
        return
    try:
        findings = run()
    except RuntimeError as error:
        console.print(str(error), style="red")
        raise typer.Exit(1) from None
    if as_json:
        print(json.dumps(findings))
    else:
        device = f"torch {findings['torch']} on {findings['device']}"
        console.print(f"{device}, all-reduce over {findings['all_reduce']} in {findings['seconds']} s")


def run_in_output(
    verb: str,
    args: list[str] | None,
    config: C,
    do: Callable[[C], Mapping[str, Any]],
    show: Callable[[Summary], None],
    as_json: bool,
    dry_run: bool,
    record: bool = True,
) -> Summary | None:
    """`run_verb` for verbs that write to `config.output`, beside which their record is kept."""
    made_of = getattr(config, "model", "") or getattr(config, "run", "")
    return run_verb(
        verb,
        args or [],
        config,
        lambda: dict(do(config)),
        output=config.output if record else "",
        show=show,
        as_json=as_json,
        dry_run=dry_run,
        # the chain follows from what it was made of, where that is a run
        places=[made_of, config.output] if made_of else None,
    )


def _show_training(summary: Summary) -> None:
    model = f"the model is in {summary['model']}"
    if summary["finished_before"]:
        reason = summary["reason"] or f"all {summary['steps']} steps are done"
        console.print(f"finished: {reason}; {model}")
    else:
        reason = f"; {summary['reason']}" if summary["reason"] else ""
        console.print(f"trained to step {summary['steps']} in {summary['seconds']:.0f} s{reason}; {model}")


def _roundtrip_of(config: "TrainConfig") -> str:
    """The command that measures what a finished codec loses, to copy."""
    # what it writes stays on this machine
    output = "roundtrip" if "://" in config.output else f"{config.output}/roundtrip"
    settings = (f"model={config.output}", f"data={config.data}", f"output={output}")
    return typed("training", "evaluate", *settings)


def _show_runs(compared: "Comparison") -> None:
    """A column for each run; a long table is cut by nothing."""
    from training.runs_page import rows_of

    names = [printable(run["name"]) for run in compared["runs"]]
    for title, rows in (
        ("", rows_of(compared)),
        ("settings that differ", list(compared["differing"].items())),
    ):
        table = Table(title, box=None)
        for name in names:
            table.add_column(name, overflow="fold")
        for label, values in rows:
            table.add_row(*(Text(printable(text)) for text in (label, *values)))
        console.print(table)
    if compared["page"]:
        console.print(f"page: {compared['page']}")


def _show_checkpoint(line: "Line") -> None:
    metadata: Mapping[str, object] = line["facts"]
    # a marker that could not be read has no metadata
    names = [name for name in ("position", "workers", "zero_stage", "ema") if name in metadata]
    columns = [
        f"step {line['step']:8d}",
        f"{line['files']:4d} files",
        f"{line['bytes'] / 1e6:9.1f} MB",
        *(f"{name} {metadata[name]}" for name in names),
        f"damaged: {line['problem']}" if line["problem"] else "sound",
    ]
    console.print("  ".join(columns), soft_wrap=True, style="red" if line["problem"] else None)


def _show_scores(summary: Summary) -> None:
    table = Table(
        "attribute",
        "generated",
        "real (codec)",
        "chance",
        "shuffled",
        "gap closed",
        "closed when shuffled",
        box=None,
    )
    for name, scores in summary["scores"].items():
        intervals = summary["intervals"].get(name, {})
        columns = ("generated", "real", "chance", "shuffled", "closed", "shuffled_closed")
        table.add_row(name, *(_with_interval(scores[column], intervals.get(column)) for column in columns))
    console.print(table)
    if summary.get("by_steps"):
        _show_steps(summary["by_steps"])
    console.print(
        f"{summary['num_clips']} held-out clips of {summary['num_media']} media; in brackets 95 % intervals"
    )
    if summary.get("judged"):
        _show_judged(summary["judged"])
    if summary.get("against"):
        _show_comparison(summary["against"])


def _show_steps(by_steps: Mapping[str, Mapping[str, Any]]) -> None:
    """The share of the gap that each number of steps closes, and what it takes."""
    first = next(iter(by_steps.values()))
    table = Table("steps", *(f"{name}: gap closed" for name in first["scores"]), "seconds a clip", box=None)
    for steps, found in by_steps.items():
        closed = (
            _with_interval(scores["closed"], found["intervals"].get(name, {}).get("closed"))
            for name, scores in found["scores"].items()
        )
        table.add_row(steps, *closed, f"{found['seconds_per_clip']:.3f}")
    console.print(table)


def _show_judged(summary: Summary) -> None:
    """A line per figure, warnings first; judged.md has all intervals."""
    from training.judging.figures import COLUMNS
    from training.judging.page import marked, shown

    for warning in marked(summary):
        console.print(warning.strip("*\n"), style="red")
    table = Table(box=None)
    for heading in ("figure", *COLUMNS, "judge"):
        table.add_column(heading, no_wrap=heading != "judge")
    for figure in summary["figures"]:
        others = [shown(figure[column]).partition(" ")[0] for column in COLUMNS[1:]]
        judge = printable(last_name(figure["judge"]))
        table.add_row(figure["name"], shown(figure["generated"]), *others, judge)
    console.print(table)
    counts = f"{summary['num_pairs']} pairs of {summary['num_media']} media"
    console.print(f"{counts}; in brackets 95 % intervals; listen: {summary['page']}")
    if summary.get("av_benchmark"):
        console.print(f"next, in a checkout of av-benchmark: {summary['av_benchmark']['command']}")
    if summary.get("against"):
        _show_comparison(summary["against"])


def _show_comparison(comparison: Summary) -> None:
    """What changed, figure by figure, and what all judges say together."""
    from training.judging.page import shown

    table = Table(box=None)
    for heading in ("figure", "before", "now", "change", "judge"):
        table.add_column(heading, no_wrap=heading != "judge")
    for line in comparison["lines"]:
        cells = (shown(line["before"]), shown(line["now"]), line["change"])
        table.add_row(line["name"], *cells, printable(last_name(line["judge"])))
    console.print(table)
    for note in comparison["notes"]:
        console.print(note)
    console.print(f"against {printable(comparison['before'])}: {printable(comparison['verdict'])}")


def _with_interval(share: float, interval: list[float] | None) -> str:
    return f"{share:.2f} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else f"{share:.2f}"


if __name__ == "__main__":
    run_app(app)
