"""Options of `publish` that make a gate, and the measuring of what it requires."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from side_registry.manifest import Artifact
from sidecast.cli import options
from sidecast.cli.app import UserError
from sidecast.cli.options import Command
from sidecast.cli.output import progress_bar
from sidecast.cli.registry.views import Document, View
from sidecast.cli.settings import GroupedOption
from sidecast.cli.training.image_options import ImageArguments, image_options

if TYPE_CHECKING:
    from rich.progress import Progress

    from side_registry import TaskSpec
    from sidecast.cli.training.candidates import Backbones, Candidate
    from training.data import Example
    from training.publish_gate import PublishGate, Rival

GROUP = "Publish gate"


def gate_options(command: Command) -> Command:
    """Add `--require`, `--better-than`, `--data` and what measuring needs; `GateArguments` takes their values."""
    made: list[Callable[[Command], Command]] = [
        click.option(
            "--require",
            multiple=True,
            metavar="SCORE>=X",
            help='What the run must measure on --data: "accuracy>=0.9"; also <=, > and <.',
            cls=GroupedOption,
            group=GROUP,
        ),
        click.option(
            "--better-than",
            metavar="ALIAS",
            help="The run must score higher on --data than the version under this alias.",
            cls=GroupedOption,
            group=GROUP,
        ),
        click.option(
            "--data",
            metavar="FILE",
            help="Labelled rows: .jsonl, .csv, .tsv, .parquet.",
            cls=GroupedOption,
            group=GROUP,
        ),
        options.option(
            "--backbone",
            metavar="B",
            help="A Hugging Face folder, or a hub id.  [default: the run's]",
            cls=GroupedOption,
            group=GROUP,
        ),
        options.rename,
        options.device,
        options.dtype,
        image_options,
    ]
    for add in reversed(made):
        command = add(command)
    return command


@dataclass(frozen=True, kw_only=True)
class GateArguments:
    """The values of these options."""

    require: tuple[str, ...]
    better_than: str | None
    data: str | None
    backbone: str | None
    renames: dict[str, str]
    device: str
    dtype: str
    images: ImageArguments

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "GateArguments":
        """Take the values as click passes them.

        Raises:
            UserError: a gate without rows, or rows without a gate.
        """
        names = ("images", "features", "vision", "vision_layer", "vision_size", "cache_dir")
        own = {name: value for name, value in values.items() if name not in names}
        arguments = cls(**own, images=ImageArguments(*(values[name] for name in names)))
        if arguments.is_given and arguments.data is None:
            raise UserError("--require and --better-than need --data FILE, labelled rows to measure the run on")
        if arguments.data is not None and not arguments.is_given:
            raise UserError("--data is for a gate; give --require or --better-than too")
        return arguments

    @property
    def is_given(self) -> bool:
        """Whether something is required."""
        return bool(self.require) or self.better_than is not None

    def measure(
        self, artifact: Artifact, run: str, registry: str | None, server: str | None, *, as_json: bool
    ) -> Document:
        """Measure the run, and the version that it must be better than; return the record for its provenance.

        Raises:
            GateRefused: it does not measure what is required.
            RequirementError, DataError, RunError, UnknownAlias.
        """
        from sidecast.cli.training.candidates import Backbones, check_images_given, in_run
        from training.data import check_renames, data_sha256, read_examples
        from training.publish_gate import PublishGate

        assert self.data is not None
        spec = artifact.manifest.spec
        gate = PublishGate.parse(spec, self.require, self.better_than)
        check_renames([spec], self.renames)
        examples = read_examples(self.data, spec, self.renames)
        digest = data_sha256(self.data)
        other = self._rival_version(spec.name, registry, server)
        backbones = Backbones(self.device, self.dtype)
        candidate = in_run(run, self.backbone, backbones)
        check_images_given(candidate, spec, self.images)
        rival = None
        with progress_bar(quiet=as_json) as bars:
            scores = self._scores(gate, candidate, spec, examples, bars)
            if other is not None:
                rival = self._rival(gate, other, candidate, run, registry, server, backbones, examples, bars)
        return gate.check(scores, rival, len(examples), digest)

    def _rival_version(self, task: str, registry: str | None, server: str | None) -> int | None:
        """The version under the alias; None where there is nothing to be better than."""
        from side_registry import Registry
        from side_registry.errors import RegistryNotFound
        from training.publishing import rival_version

        if self.better_than is None:
            return None
        source, where = options.choose(registry=registry, server=server)
        if source == "server":
            from serving.client import Client, UnknownTaskError

            try:
                info = Client(where).task(f"{task}@{self.better_than}")
            except UnknownTaskError:
                return None
            return info.serving.get(self.better_than) or info.aliases[self.better_than]
        try:
            return rival_version(Registry.open(where), task, self.better_than)
        except RegistryNotFound:
            return None

    def _rival(
        self,
        gate: "PublishGate",
        version: int,
        candidate: "Candidate",
        run: str,
        registry: str | None,
        server: str | None,
        backbones: "Backbones",
        examples: Sequence["Example"],
        bars: "Progress",
    ) -> "Rival":
        from sidecast.cli.training.candidates import in_registry, on_server
        from training.data import read_examples
        from training.publish_gate import Rival
        from training.publishing import spec_of_rival
        from training.run_folder import RunFolder

        source, where = options.choose(registry=registry, server=server)
        name = f"{gate.spec.name}:{version}"
        if source == "server":
            other = on_server(name, where)
        else:
            backbone = self.backbone or RunFolder(run).backbone_source()
            other = in_registry(name, where, backbone, backbones, candidate.encoder_source)
        assert self.data is not None
        assert self.better_than is not None
        spec = spec_of_rival(gate.spec, other.spec)
        rows = read_examples(self.data, spec, self.renames) if spec != gate.spec else examples
        return Rival(alias=self.better_than, version=version, scores=self._scores(gate, other, spec, rows, bars))

    def _scores(
        self,
        gate: "PublishGate",
        candidate: "Candidate",
        spec: "TaskSpec",
        examples: Sequence["Example"],
        bars: "Progress",
    ) -> dict[str, float]:
        from sidecast.cli.training.candidates import answers_of
        from training.metrics import measure, rows_to_answer

        assert self.data is not None
        rows = rows_to_answer(spec, examples)
        answered = answers_of(candidate, spec, rows, examples, self.data, self.images, bars)
        return measure(gate.spec, answered.values(spec), examples, gate.names, answered.confidences)


def publish_gated(
    view: View, artifact: Artifact, record: Document, alias: str | None, message: str, allow_untrained: bool
) -> Document:
    """Publish a run with a gate's record in its provenance."""
    from training.publishing import gated, message_with_gate

    with gated(artifact, record) as folder:
        return view.publish(str(folder), alias, message_with_gate(message, record), allow_untrained)


def gate_words(record: Document) -> str:
    """A record as a part of a sentence."""
    from training.publish_gate import gate_text

    return gate_text(record)
