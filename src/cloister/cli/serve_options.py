"""What `serve` and `measure serve` are told alike: the options, and the measured configuration that they mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from cloister.errors import UsageError

if TYPE_CHECKING:
    from cloister.inference.adapter import Adapter
    from cloister.inference.configuration import ServeConfiguration
    from cloister.inference.model import Model
    from cloister.knowledge.rules import Rules

# As cloister.inference.engines has them, which a command imports only when it runs.
Precision = Literal["fp32", "bf16", "int8", "int4"]
KvCache = Literal["f16", "q8_0", "q4_0"]
Speculation = Literal["off", "ngram", "draft"]

ModelArgument = Annotated[
    Path | None,
    typer.Argument(
        help="A sealed directory, or in the clear a .gguf file or a model's folder; none with --engine upstream.",
        metavar="MODEL",
    ),
]
NameOption = Annotated[
    str, typer.Option("--model-name", help="The name clients ask for; by default the file's or folder's.")
]
EngineOption = Annotated[
    str,
    typer.Option(
        "--engine",
        help="llamacpp, openvino, torch, upstream or a plugin's; auto: what `cloister optimize` chose for the model, "
        "else the usual one of its kind.",
    ),
]
ContextOption = Annotated[
    int, typer.Option("--context", min=64, help="Tokens per request, prompt and answer.")
]
SlotsOption = Annotated[int, typer.Option("--slots", min=1, max=256, help="Requests answered at once.")]
AdapterOption = Annotated[
    Path | None,
    typer.Option(
        "--adapter",
        help="Directory of a LoRA adapter as peft saves it: sealed, a sealed tree, or in the clear.",
    ),
]
AdapterFolderOption = Annotated[
    str, typer.Option("--adapter-folder", help="Where inside --adapter it lies; by default at its top.")
]
PrecisionOption = Annotated[
    Precision | None, typer.Option("--precision", help="Of the weights while they compute.")
]
KvCacheOption = Annotated[
    KvCache | None, typer.Option("--kv-cache", help="How attention's memory of the text is kept.")
]
PrefixCacheOption = Annotated[
    bool,
    typer.Option(
        "--prefix-cache",
        help="Keep prompts, so that an API key's next request with the same beginning starts sooner.",
    ),
]
SpeculationOption = Annotated[
    Speculation | None,
    typer.Option(
        "--speculation", help="Guess tokens, check them together: by what was said before, or by --draft."
    ),
]
DraftOption = Annotated[
    Path | None,
    typer.Option("--draft", help="The small model that guesses, like MODEL sealed or in the clear."),
]
UpstreamOption = Annotated[
    str | None,
    typer.Option(
        "--upstream",
        help="With --engine upstream: the OpenAI server inside this TEE, unix:/path or http://127.0.0.1:PORT.",
    ),
]
SignersOption = Annotated[
    list[str] | None,
    typer.Option(
        "--index-signer", help="Ed25519 public key (hex) whose index signature to believe; repeatable."
    ),
]
BrokerPolicyOption = Annotated[
    Path | None, typer.Option("--broker-policy", help="Policy by which the key broker is appraised.")
]
ApiKeysOption = Annotated[
    Path | None, typer.Option("--api-keys", help="File with one API key per line (mode 0600).")
]
NoApiKeysOption = Annotated[bool, typer.Option("--no-api-keys", help="Answer anybody.")]
KnowledgeOption = Annotated[
    Path | None,
    typer.Option(
        "--knowledge",
        metavar="RULES",
        help="Answer from documents: who may ask which (`cloister knowledge`).",
    ),
]
EncoderOption = Annotated[
    Path | None,
    typer.Option(
        "--encoder",
        help="What computes the documents' vectors: a Hugging Face directory or a GGUF file of an embedding model; "
        "by default all-MiniLM-L6-v2 of its package.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


@dataclass(frozen=True, slots=True, kw_only=True)
class ServeOptions:
    """The options whose meaning is measured."""

    model: Path | None
    model_name: str
    engine: str
    context: int
    slots: int
    adapter: Path | None
    adapter_folder: str
    precision: Precision | None
    kv_cache: KvCache | None
    prefix_cache: bool
    speculation: Speculation | None
    draft: Path | None
    upstream: str | None
    index_signer: list[str] | None
    broker_policy: Path | None
    api_keys: Path | None
    no_api_keys: bool
    knowledge: Path | None = None
    encoder: Path | None = None


@dataclass(frozen=True, slots=True)
class Asked:
    """What the options name, found and measured."""

    configuration: ServeConfiguration
    model: Model | None
    """None where another server holds it."""
    model_index: bytes
    adapter: Adapter | None
    draft: Model | None
    knowledge: AskedKnowledge | None


@dataclass(frozen=True, slots=True)
class AskedKnowledge:
    """The rules of documents, and the encoder that makes them findable."""

    rules: Rules
    encoder: Model


def understood(options: ServeOptions) -> Asked:
    """The measured configuration that these options mean, and what it names. Raises :class:`UsageError`."""
    from cloister.appraisal.policy import read_policy
    from cloister.inference.configuration import (
        MeasuredAdapter,
        MeasuredKnowledge,
        ServeConfiguration,
        upstream_index,
    )
    from cloister.inference.model import find_model

    _check_together(options)
    signers = parse_signers(options.index_signer)
    model = None if options.model is None else find_model(options.model, signers=signers)
    draft = None if options.draft is None else find_model(options.draft, signers=signers)
    adapter = _find_added(options.adapter, options.adapter_folder, signers)
    knowledge = _find_knowledge(options.knowledge, options.encoder, signers)
    policy = None if options.broker_policy is None else read_policy(options.broker_policy)
    configuration = ServeConfiguration(
        model_name=options.model_name or _name(options.model),
        engine=options.engine,
        context_length=options.context,
        slots=options.slots,
        index_signers=tuple(sorted(key.hex() for key in signers)),
        broker_policy=policy.digest if policy else None,
        api_keys_required=not options.no_api_keys,
        adapter=None
        if adapter is None
        else MeasuredAdapter(digest=adapter.digest.hex(), folder=options.adapter_folder),
        precision=options.precision,
        kv_cache=options.kv_cache,
        prefix_cache=options.prefix_cache,
        speculation=options.speculation,
        draft=None if draft is None else draft.digest.hex(),
        upstream=options.upstream,
        knowledge=None
        if knowledge is None
        else MeasuredKnowledge(rules=knowledge.rules.digest.hex(), encoder=knowledge.encoder.digest.hex()),
    )
    index = model.digest if model is not None else upstream_index(options.upstream or "")
    return Asked(configuration, model, index, adapter, draft, knowledge)


def _check_together(options: ServeOptions) -> None:
    if options.knowledge is not None and options.no_api_keys:
        raise UsageError(
            "--knowledge answers its users alone", todo="leave --no-api-keys out: the rules have their keys"
        )
    if options.knowledge is None and (options.api_keys is None) == (not options.no_api_keys):
        raise UsageError("say who may ask", todo="pass --api-keys FILE, or --no-api-keys to answer anybody")
    if (options.engine == "upstream") != (options.upstream is not None):
        raise UsageError(
            "--engine upstream and --upstream go together", todo="name the server's address with --upstream"
        )
    if (options.model is None) != (options.upstream is not None):
        raise UsageError(
            "name the model to serve"
            if options.model is None
            else "with --upstream the other server has the model",
            todo="pass a sealed directory, a model's folder or a .gguf file"
            if options.model is None
            else "leave MODEL out",
        )
    if options.upstream is not None and not options.model_name:
        raise UsageError("an upstream's model needs a name", todo="pass --model-name, as clients ask for it")
    if (options.draft is None) != (options.speculation != "draft"):
        raise UsageError(
            "--speculation draft and --draft go together", todo="name the small model with --draft"
        )
    if options.prefix_cache and options.no_api_keys:
        raise UsageError(
            "--prefix-cache keeps prompts by API key, and nobody is asked for one",
            todo="pass --api-keys FILE, or leave --prefix-cache out",
        )


def parse_signers(index_signer: list[str] | None) -> frozenset[bytes]:
    """Public keys from the command line. Raises :class:`UsageError`."""
    from cloister.encoding import from_hex
    from cloister.errors import FormatError

    try:
        return frozenset(from_hex(text, 32, what="--index-signer") for text in index_signer or ())
    except FormatError as error:
        raise UsageError(
            error.what, todo="`cloister keys show FILE` prints it, FILE being the owner's signing key"
        ) from None


def _find_knowledge(
    path: Path | None, encoder: Path | None, signers: frozenset[bytes]
) -> AskedKnowledge | None:
    from cloister.inference.model import find_model
    from cloister.knowledge.opening import usual_encoder
    from cloister.knowledge.rules import MAX_RULES, read_rules
    from cloister.manifest.storage import read_bounded

    if path is None:
        if encoder is not None:
            raise UsageError("--encoder without --knowledge", todo="name the rules with --knowledge")
        return None
    rules = read_rules(read_bounded(path, limit=MAX_RULES, what="the knowledge rules"), name=str(path))
    return AskedKnowledge(rules, find_model(encoder or usual_encoder(), signers=signers))


def _find_added(adapter: Path | None, folder: str, signers: frozenset[bytes]) -> Adapter | None:
    from cloister.inference.adapter import find_adapter

    if adapter is None:
        if folder:
            raise UsageError("--adapter-folder without --adapter", todo="name the directory with --adapter")
        return None
    return find_adapter(adapter, folder=folder, signers=signers)


def _name(model: Path | None) -> str:
    if model is None:
        return ""
    return model.name.removesuffix(".gguf").removesuffix(".sealed").removesuffix(".optimized")
