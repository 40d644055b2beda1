"""Chat templates of downloaded models: programs in jinja that write the text around a question.

Our own renderer, because the sandbox of jinja, which transformers uses, keeps a template from files and from Python,
and not from running for days or filling the memory. Here everything a template does is paid for, and before it is done
where that can be large. Compiling is bounded by the template's length.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2 import TemplateError, nodes, pass_context
from jinja2.ext import Extension, LoopControlExtension
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from .answers import excerpt

LONGEST_TEMPLATE = 128 * 1024
"""Characters. The longest of published models have about 20,000."""
LIMIT = 2_000_000
"""What a template may spend: one for each character or item that it handles, STEP for each iteration and each call."""
STEP = 20
DEEPEST = 32
"""Of lists and tables inside each other."""
LARGEST_NUMBER = 2**64

TICK, SPEND, JOIN = "realisr tick", "realisr spend", "realisr join"  # no template can spell a name with a space

FILTERS = frozenset(
    re.findall(
        r"\w+",
        """
        abs capitalize count d default dictsort escape e first float int items join last length list lower map
        max min reject rejectattr replace reverse round safe select selectattr sort string title tojson trim
        unique upper
        """,
    )
)
METHODS = frozenset(
    re.findall(
        r"\w+",
        """
        capitalize copy count endswith find get index isalnum isalpha isdigit islower isspace isupper items join
        keys lower lstrip partition removeprefix removesuffix replace rfind rpartition rsplit rstrip split
        splitlines startswith strip title upper values
        """,
    )
)
BUILT_IN = (str, bytes, list, tuple, dict, set, int, float)


class TooMuch(Exception):
    """A template does more than it may."""


def render(template: str, messages: Sequence[Mapping[str, Any]], variables: Mapping[str, Any]) -> str:
    """The text in which a model is asked to answer `messages`. variables: further names the template may use.

    Raises ValueError for a template that is no jinja, fails, or does more than LIMIT.
    """
    try:
        if len(template) > LONGEST_TEMPLATE:
            raise TooMuch(f"it has {len(template)} characters, at most {LONGEST_TEMPLATE} are read")
        environment = _Environment()
        written = environment.from_string(template).render(
            messages=messages, add_generation_prompt=True, tools=None, documents=None, **variables
        )
    except RecursionError:
        raise ValueError(
            "The chat template in the model's folder calls itself without an end, or is nested too deeply."
        ) from None
    except Exception as error:  # a template is a program, and may raise whatever programs raise
        kind = "" if isinstance(error, TooMuch | TemplateError) else f"{type(error).__name__}: "
        raise ValueError(
            f"The chat template in the model's folder cannot be used ({kind}{excerpt(str(error))}). Download the "
            "folder again, from where it was published."
        ) from None
    return written


class _Environment(ImmutableSandboxedEnvironment):
    """As transformers sets it up, for one rendering, with a count of what it costs."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, optimized=False, extensions=[_Generation, LoopControlExtension]
        )
        self.left = LIMIT
        self.globals = {
            "range": self.range,
            "dict": dict,
            "namespace": self.globals["namespace"],
            "raise_exception": _raise,
            "strftime_now": lambda form: datetime.now().strftime(form[:STEP]),
        }
        # A filter that nobody needs may stand in a part of a template that is not reached.
        self.filters = {
            name: self.counted(name, self.filters[name]) if name in FILTERS else _refusing(name)
            for name in self.filters
        }
        self.filters["tojson"] = self.counted("tojson", _tojson)
        self.filters |= {TICK: self.tick, SPEND: self.spend, JOIN: self.join}
        tests: dict[str, Any] = self.tests
        self.tests = {name: self.counted(name, test) for name, test in tests.items()}

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        tree = super()._parse(source, name, filename)
        _Counting().visit(tree)
        tree.set_environment(self)
        return tree

    def pay(self, cost: int) -> None:
        """Raises TooMuch when there is nothing left to pay with."""
        self.left -= cost
        if self.left < 0:
            raise TooMuch("it does more than the template of any known model")

    def measure(self, *values: object) -> int:
        """Characters and items in values, everything inside them included. Raises TooMuch beyond the limits."""
        size = 0
        level: Sequence[object] = values
        for _ in range(DEEPEST):
            inside: list[object] = []
            for value in level:
                size += 1 + (len(value) if isinstance(value, str | bytes) else 0)
                if isinstance(value, Mapping):
                    inside += [*value.keys(), *value.values()]
                elif isinstance(value, list | tuple | set | frozenset):
                    inside += value
                elif isinstance(value, int) and abs(value) > LARGEST_NUMBER:
                    raise TooMuch("it works with numbers of more than 64 bits")
                if size + len(inside) > self.left:
                    raise TooMuch("it writes more than the template of any known model")
            if not inside:
                return size
            level = inside
        raise TooMuch(f"it puts lists more than {DEEPEST} times into each other")

    @pass_context
    def tick(self, context: Any, value: object) -> bool:
        self.pay(STEP)
        return True

    @pass_context
    def spend(self, context: Any, value: Any) -> Any:
        self.pay(self.measure(value))
        return value

    @pass_context
    def join(self, context: Any, parts: Sequence[Any]) -> str:
        """The operator ~."""
        self.pay(self.measure(*parts))
        return "".join(map(str, parts))

    def range(self, *ends: int) -> range:
        found = range(*ends)
        self.pay(len(found))
        return found

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Raises TooMuch for what makes much of little."""
        self.pay(STEP + self.measure(left, right))
        if operator in ("**", "%") and not (isinstance(left, int | float) and isinstance(right, int | float)):
            raise TooMuch(f"it uses {operator} with something else than numbers")
        if operator == "**" and abs(right) > STEP:
            raise TooMuch("it works with numbers of more than 64 bits")
        if operator == "*":
            for sequence, times in ((left, right), (right, left)):
                if isinstance(sequence, str | list | tuple) and isinstance(times, int):
                    self.pay(len(sequence) * max(0, times))
        result = super().call_binop(context, operator, left, right)
        self.measure(result)
        return result

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        """Of functions, macros, and methods of texts, lists and tables. Raises TooMuch for methods not in METHODS."""
        name, owner = getattr(__obj, "__name__", ""), getattr(__obj, "__self__", None)
        if (isinstance(owner, BUILT_IN) and name not in METHODS) or name in ("format", "format_map"):
            raise TooMuch(f"it calls {name}(), which chat templates have no use for")
        __self.pay(STEP + __self.measure(owner if isinstance(owner, BUILT_IN) else None, *args, *kwargs.values()))
        if isinstance(owner, BUILT_IN):
            __self.pay_for_result(name, owner, *args)
        result = super().call(__context, __obj, *args, **kwargs)
        __self.pay(__self.measure(result))
        return result

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter or test that is paid for."""

        passed = getattr(function, "jinja_pass_arg", None)

        def paid(*args: Any, **kwargs: Any) -> Any:
            values = args[1:] if passed else args
            self.pay(STEP + self.measure(*values, *kwargs.values()))
            if name == "join":
                items = list(values[0])
                args = (*args[: len(args) - len(values)], items, *values[1:])
                self.pay(len(items) * len(str([*values[1:2], *kwargs.values()])))
            elif name == "replace":
                self.pay_for_result(name, *values, *kwargs.values())
            result = function(*args, **kwargs)
            self.pay(self.measure(result))
            return result

        if passed:
            paid.jinja_pass_arg = passed  # type: ignore[attr-defined]
        return paid

    def pay_for_result(self, name: str, *values: Any) -> None:
        """For `separator.join(items)` and `text.replace(old, new)`, which can make much of little."""
        if name == "join" and len(values) == 2 and isinstance(values[1], list | tuple):
            self.pay(len(str(values[0])) * len(values[1]))
        elif name == "replace" and len(values) >= 3:
            text, old, new = map(str, values[:3])
            self.pay(text.count(old) * len(new))


class _Counting(NodeTransformer):
    """Puts payments into a parsed template: for each iteration, and for each value that is made or written."""

    def visit_For(self, node: nodes.For) -> nodes.For:
        self.generic_visit(node)
        node.body.insert(0, nodes.ExprStmt(_paid(nodes.Const(None), TICK)))
        if node.test is not None:
            node.test = nodes.And(_paid(nodes.Const(None), TICK), node.test)
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [each if isinstance(each, nodes.TemplateData) else _paid(each, SPEND) for each in node.nodes]
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Expr:
        self.generic_visit(node)
        return _paid(nodes.List(node.nodes), JOIN)

    def visit_Compare(self, node: nodes.Compare) -> nodes.Expr:
        self.generic_visit(node)
        node.expr = _paid(node.expr, SPEND)
        for operand in node.ops:
            operand.expr = _paid(operand.expr, SPEND)
        return node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Expr:
        self.generic_visit(node)
        return _paid(node, SPEND)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Expr:
        self.generic_visit(node)
        return _paid(node, SPEND) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Expr:
        self.generic_visit(node)
        return _paid(node, SPEND) if isinstance(node.arg, nodes.Slice) else node


def _paid(node: nodes.Expr, name: str) -> nodes.Filter:
    return nodes.Filter(node, name, [], [], None, None, lineno=node.lineno or 1)


class _Generation(Extension):
    """`{% generation %}`, which marks answers in texts to learn from, and does nothing else."""

    tags = {"generation"}

    def parse(self, parser: Any) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(*_: Any, **__: Any) -> None:
        raise TooMuch(f"it uses the filter {name}, which chat templates have no use for")

    return refuse


def _raise(message: object) -> None:
    raise TemplateError(str(message))


def _tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """Without the escapes for HTML that jinja's own puts in."""
    allowed = {name: options[name] for name in ("separators", "sort_keys") if name in options}
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=min(indent, 8) if indent else indent, **allowed)
