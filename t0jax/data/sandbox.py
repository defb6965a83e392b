"""A Jinja environment in which every operation pays for what it reads and makes.

Prompts come from strangers. Jinja's own sandbox keeps a template from running code, but not from looping, or from
making a string of gigabytes, without end. Here a render has an allowance, and everything that is not done in constant
time draws on it beforehand, in proportion to the size of its operands and, where one call can make much out of
little (`*`, `replace`, `center`, ...), of its result. Loops pay per round. What has no price is refused. So the time
and the memory of a render are bounded without threads or signals, and an ordinary prompt pays a few additions.

The prices are put in place when a template is compiled: filters and tests are wrapped, calls and operators go
through the environment, and the syntax tree gets a paying filter where Jinja would run plain Python (printing,
comparing, slicing, looping).
"""

import re
import types
from collections.abc import Callable, Iterator
from typing import Any

import jinja2
from jinja2 import nodes
from jinja2.exceptions import SecurityError, UndefinedError
from jinja2.runtime import Context, LoopContext, Undefined
from jinja2.sandbox import SandboxedEnvironment, SandboxedFormatter, safe_range
from jinja2.utils import Namespace, missing
from jinja2.visitor import NodeTransformer

from t0jax.data.metering import METER, LimitError, Meter, check_key
from t0jax.data.prices import (
    BINOP_PRICES,
    CALL_PRICE,
    FILTERS_PAID,
    LOOP_ATTRIBUTES,
    METHOD_PRICES,
    PRINTED_LENGTH,
    TESTS_PAID,
    listed,
    pay_arguments,
)

MAX_SOURCE = 1 << 15
"""Characters of a template; the longest of promptsource has 2,849."""


class MissingFieldError(Exception):
    """A template used a field that the example does not have; `name` names it."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Missing(Undefined):
    """Strict for a name the example lacks; lenient, as in promptsource, for an absent attribute or item."""

    __slots__ = ()

    def _fail_with_undefined_error(self, *args: Any, **kwargs: Any) -> Any:
        self._check()
        raise self._undefined_exception(self._undefined_message)

    # Jinja binds its own version of the method above to these names.
    __call__ = __getitem__ = __pos__ = __neg__ = _fail_with_undefined_error
    __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _fail_with_undefined_error
    __truediv__ = __rtruediv__ = __floordiv__ = __rfloordiv__ = _fail_with_undefined_error
    __mod__ = __rmod__ = __pow__ = __rpow__ = _fail_with_undefined_error
    __lt__ = __le__ = __gt__ = __ge__ = _fail_with_undefined_error
    __int__ = __float__ = __complex__ = _fail_with_undefined_error

    def _check(self) -> None:
        if self._undefined_exception is not UndefinedError:
            raise self._undefined_exception(self._undefined_message)
        if self._undefined_obj is missing and self._undefined_name is not None:
            raise MissingFieldError(self._undefined_name)

    def __str__(self) -> str:
        self._check()
        return ""

    def __len__(self) -> int:
        self._check()
        return 0

    def __iter__(self) -> Iterator[Any]:
        self._check()
        return iter(())

    def __bool__(self) -> bool:
        self._check()
        return False

    def __eq__(self, other: object) -> bool:
        self._check()
        return isinstance(other, Undefined)

    def __hash__(self) -> int:
        self._check()
        return id(Undefined)


class _Namespace(Namespace):
    """Jinja's `namespace()`, but printed without what it holds (which may be without end)."""

    def __repr__(self) -> str:
        return "<Namespace>"


def _namespace(*args: Any, **kwargs: Any) -> _Namespace:
    return _Namespace(_dict(*args, **kwargs))


def _dict(*args: Any, **kwargs: Any) -> dict[Any, Any]:
    if args and not isinstance(args[0], dict):
        args = ([(check_key(key), value) for key, value in args[0]], *args[1:])
    return dict(*args, **kwargs)


# --------------------------------------------------------------------------------------- the environment


class _Format:
    """A string's `format`, called through `Sandbox.call` alone."""

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text


class _PayingFormatter(SandboxedFormatter):
    def __init__(self, env: "Sandbox", meter: Meter) -> None:
        super().__init__(env)
        self._meter = meter

    def format_field(self, value: Any, format_spec: str) -> str:
        widths = sum(int(digits[:12]) for digits in re.findall(r"\d+", format_spec))
        self._meter.spend(widths >> 4)
        return super().format_field(self._meter.pay(value), format_spec)


_FREE = frozenset({(float, float), (float, int), (int, float)})
"""Operands of operators that take no time to speak of. Text is no such operand: `%` formats it."""


class Sandbox(SandboxedEnvironment):
    """Compiles prompts; what they may call is listed above. One instance serves all threads."""

    intercepted_binops = frozenset(BINOP_PRICES)

    def __init__(self) -> None:
        super().__init__(undefined=_Missing, autoescape=False)
        self.globals = {"range": safe_range, "zip": zip, "namespace": _namespace, "dict": _dict}
        self.filters = dict(FILTERS_PAID)
        self.tests = dict(TESTS_PAID)

    def parse_prompt(self, source: str) -> nodes.Template:
        """The syntax tree of a template.

        Raises:
          LimitError: the source is too long.
          jinja2.TemplateSyntaxError: it is not Jinja.
        """
        if len(source) > MAX_SOURCE:
            raise LimitError(f"{len(source)} characters of template, at most {MAX_SOURCE}")
        return self.parse(source)

    def compile_prompt(
        self, tree: nodes.Template, mark: Callable[[nodes.Template], None] | None = None
    ) -> jinja2.Template:
        """A template that pays, to be rendered through `run`; changes `tree`.

        Args:
          tree: from `parse_prompt`.
          mark: changes the tree when the prices are in it: what it adds is printed for nothing.

        Raises:
          LimitError: a statement that prompts do not have.
          jinja2.TemplateSyntaxError: a filter or test that there is not.
        """
        tree = _PriceTags().visit(tree)
        if mark is not None:
            mark(tree)
        return jinja2.Template.from_code(self, self.compile(tree), self.globals)

    def run(self, template: jinja2.Template, variables: dict[str, Any], meter: Meter) -> str:
        """Renders with `variables` (which it takes over), spending from `meter`."""
        context = template.new_context({**self.globals, **variables, METER: meter}, shared=True)
        return "".join(template.root_render_func(context))

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        if isinstance(obj, Namespace):
            return not attr.startswith("_")
        if isinstance(obj, LoopContext) and attr in LOOP_ATTRIBUTES:
            return True
        if type(obj).__name__ == "_GroupTuple":
            return attr in ("grouper", "list")
        return attr in METHOD_PRICES.get(type(obj), ())

    def wrap_str_format(self, value: Any) -> Any:
        bound = isinstance(value, types.BuiltinMethodType) and value.__name__ == "format"
        return _Format(value.__self__) if bound and type(value.__self__) is str else None

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        meter: Meter = __context.parent[METER]
        for own in (
            "_loop_vars",
            "_block_vars",
        ):  # Jinja's, meant for functions that take a context
            kwargs.pop(own, None)
        meter.spend(CALL_PRICE)
        pay_arguments(meter, (*args, *kwargs.values()))
        if isinstance(__obj, _Format):
            meter.spend(1 + len(__obj.text))
            return _PayingFormatter(__self, meter).vformat(__obj.text, args, kwargs)
        if any(__obj is function for function in __self.globals.values()):
            return meter.watch(__obj(*args, **kwargs))
        owner = getattr(__obj, "__self__", None)
        price = METHOD_PRICES.get(type(owner), {}).get(getattr(__obj, "__name__", ""))
        if price is None:
            raise SecurityError(f"{type(__obj).__name__} may not be called in a prompt")
        if type(owner) is str and __obj.__name__ == "join":
            args = (listed(meter, *args),)
            meter.spend(len(args[0]) * (len(owner) + 1) >> 4)
        elif type(owner) is dict and __obj.__name__ == "update":
            args = (_dict(*args),)
        meter.spend(price(owner, *args, **kwargs))
        return meter.watch(__obj(*args, **kwargs))

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        # With a space: one that the compiler puts in, spelled out for `map`.
        if not isinstance(name, str) or " " in name:
            raise SecurityError(f"no filter is named {name!r}")
        return super().call_filter(name, *args, **kwargs)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        if (type(left), type(right)) not in _FREE:
            context.parent[METER].spend(CALL_PRICE + BINOP_PRICES[operator](left, right))
        return self.binop_table[operator](left, right)


# ------------------------------------------------------------------------------------------ the compiler

_REFUSED = {
    nodes.Macro: "macro",
    nodes.CallBlock: "call",
    nodes.Include: "include",
    nodes.Import: "import",
    nodes.FromImport: "import",
    nodes.Extends: "extends",
    nodes.Block: "block",
    nodes.EvalContextModifier: "autoescape",
}


class _PriceTags(NodeTransformer):
    """Puts a paying filter wherever Jinja compiles to plain Python whose cost depends on its operands."""

    def visit_Template(self, node: nodes.Template) -> nodes.Node:
        for statement in node.find_all(tuple(_REFUSED)):
            tag = next(tag for kind, tag in _REFUSED.items() if isinstance(statement, kind))
            raise LimitError(f"{{% {tag} %}} has no place in a prompt")
        return self.generic_visit(node)

    def visit_For(self, node: nodes.For) -> nodes.For:
        if node.recursive:
            raise LimitError("a recursive loop has no place in a prompt")
        parts = [node.target, *node.body, *([node.test] if node.test else [])]
        price = 1 + sum(_round_price(part) for part in parts)
        self.generic_visit(node)
        node.iter = _filtered(node.iter, "pay rounds", nodes.Const(price))
        return node

    def visit_Output(self, node: nodes.Output) -> nodes.Output:
        self.generic_visit(node)
        node.nodes = [
            child
            if isinstance(child, nodes.TemplateData) or _is_paid_print(child)
            else _filtered(child, "print paid")
            for child in node.nodes
        ]
        return node

    def visit_Call(self, node: nodes.Call | nodes.Test | nodes.Filter) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filtered(node.dyn_args, "pay items")
        return node

    visit_Test = visit_Call

    def visit_Filter(self, node: nodes.Filter) -> nodes.Node:
        self.visit_Call(node)
        inner = node.node
        truncates = node.name == "truncate" and node.args == [nodes.Const(PRINTED_LENGTH)]
        if not truncates or node.kwargs or not isinstance(inner, nodes.Filter):
            return node
        if inner.name != "string" or inner.node is None or inner.args or inner.kwargs:
            return node
        return _filtered(inner.node, "print truncated")

    def visit_Compare(self, node: nodes.Compare) -> nodes.Compare:
        self.generic_visit(node)
        operands = [node, *node.ops]
        searches = any(operand.op in ("in", "notin") for operand in node.ops)
        with_constant = len(node.ops) == 1 and any(
            _is_constant(operand.expr) for operand in operands
        )
        if searches or not with_constant:
            for operand in operands:
                operand.expr = _paid(operand.expr)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Concat:
        self.generic_visit(node)
        node.nodes = [_paid(child) for child in node.nodes]
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Getitem:
        self.generic_visit(node)
        if isinstance(node.arg, nodes.Slice):
            node.node = _filtered(node.node, "pay slice")
        else:
            node.arg = _paid(node.arg, "pay key")
        return node

    def visit_Dict(self, node: nodes.Dict) -> nodes.Dict:
        self.generic_visit(node)
        for pair in node.items:
            pair.key = _paid(pair.key, "pay key")
        return node


def _filtered(node: nodes.Node, name: str, *args: nodes.Expr) -> nodes.Filter:
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _paid(node: nodes.Expr, name: str = "pay") -> nodes.Expr:
    return node if _is_constant(node) else _filtered(node, name)


def _is_constant(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Const) or (
        isinstance(node, nodes.Neg) and isinstance(node.node, nodes.Const)
    )


def _is_paid_print(node: nodes.Node) -> bool:
    return isinstance(node, nodes.Filter) and node.name == "print truncated"


def _round_price(node: nodes.Node) -> int:
    """Units of one round of a loop over `node`: its expressions, and its text, which is printed for nothing."""
    inner = [node, *node.find_all(nodes.Node)]
    text = sum(len(child.data) for child in inner if isinstance(child, nodes.TemplateData))
    return (len(inner) >> 1) + (text >> 4)


SANDBOX = Sandbox()
"""The one that prompts are compiled in; it keeps nothing of them."""
