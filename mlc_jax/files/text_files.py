"""Texts of one's own, with their labels."""

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
    """How texts become tokens, see `tokens.create_source`, or features.

    Attributes:
      encode: from a source of tokens to the one that is read.
    """

    tokenizer: str
    max_length: int
    cache_dir: str | None
    encode: Callable[[TokenSource], Source] | None = None

    def source_maker(self) -> Callable[..., Source]:
        """(texts, ids or id_format) -> what is read; the tokenizer is loaded at once."""
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
    """Reads one file, or two, and maybe one to judge by; `.csv`, `.jsonl` or `.parquet`.

    Args:
      data: columns `text`, `label` as given, `checked_label` (empty where nobody looked), and maybe
        `id` and `split` (`test` for rows that only judge).
      noisy, clean: in place of `data`: `text` and `label`; the clean file's are the true ones, and
        its `given_label`, if there, the old ones.
      test: `text` and true `label`.
      settings: see `Settings`.
      checked: see `read_checks`.
      drawn: see `how_drawn`.
      said: where labels of `data` stand.
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
    """Keeps labels and ids, and where the rows stand; texts are read again when they are needed."""
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
