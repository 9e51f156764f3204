"""Own texts in tables, with their labels."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from mlc_jax.data.dataset import Benchmark
from mlc_jax.data.prepare import identity
from mlc_jax.data.source import Source
from mlc_jax.files.label_columns import LabelColumns, Said
from mlc_jax.files.own import FIELD, LabelledFile, OwnData, combine
from mlc_jax.files.tables import Table
from mlc_jax.files.tokens import Texts, Tokenizer, TokenSource, create_source
from mlc_jax.files.values.checks import read_checks


class Settings(NamedTuple):
    """How texts become tokens or features.

    Attributes:
      tokenizer: see `Tokenizer.load`.
      max_length, cache_dir: see `tokens.create_source`.
      encode: maps a source of tokens to one of features; None keeps tokens.
    """

    tokenizer: str
    max_length: int
    cache_dir: str | None
    encode: Callable[[TokenSource], Source] | None = None

    def source_maker(self) -> Callable[..., Source]:
        """The function (texts, ids=... or id_format=...) -> source; loads the tokenizer at once."""
        tokenizer = Tokenizer.load(self.tokenizer)

        def make(texts: Texts, **names: Any) -> Source:
            source = create_source(
                texts, tokenizer, max_length=self.max_length, cache_dir=self.cache_dir, **names
            )
            return source if self.encode is None else self.encode(source)

        return make


def load(
    data: str | None,
    noisy: str | None,
    clean: str | None,
    test: str | None,
    settings: Settings,
    checked: Sequence[str] = (),
    drawn: str | None = None,
    said: Said = Said(),  # noqa: B008
    *,
    benchmark: bool = False,
) -> OwnData | Benchmark:
    """Reads one table or two, and maybe a test table; `.csv`, `.tsv`, `.jsonl` or `.parquet`.

    Args:
      data: columns `text`, `label` as given, `checked_label` (empty where nobody looked), and maybe
        `id`, `drawn` and `split` (`test` or `validation` for rows that are not learned from).
      noisy, clean: in place of `data`: `text` and `label`. Labels of the clean file are true; its
        `given_label`, if there, is the old label.
      test: `text` and true `label`.
      settings: see `Settings`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where given labels of `data` are.
      benchmark: whether all labels of `data` are true.

    Raises:
      InputError: a file that cannot be read, or labels that do not fit together.
    """
    make_source = settings.source_maker()
    files = {
        name: read_own(
            said.table(FIELD + name, path), make_source, said if name == "data" else said.elsewhere
        )
        for name, path in (("data", data), ("noisy", noisy), ("clean", clean), ("test", test))
        if path
    }
    checks = read_checks(checked, files["data"], drawn) if checked else None
    return combine(files, identity, checks=checks, drawn=drawn, benchmark=benchmark)


def read_own(
    table: Table, make_source: Callable[..., Source], said: Said, column: str = "text"
) -> LabelledFile:
    """Reads the labels and ids of a table; texts are read again when they are needed."""
    columns = LabelColumns(table, said)

    def texts_with_labels() -> Iterator[str]:
        for line, (text, *values) in table.rows([column, *columns.required], columns.optional):
            if not text or text.isspace():
                table.fail("text is empty, expected a text in each row", line)
            columns.add(line, values)
            yield text

    def read() -> Iterator[str]:
        return (text or "" for _, (text,) in table.rows([column]))

    texts = Texts.scan(read, texts_with_labels())
    return columns.finish(lambda ids: make_source(texts, ids=ids))
