"""Named tuples that compiled functions hand to each other by their address.

numba hands a tuple over element by element and an array as seven values: a replica is two hundred arguments at each of
some seven hundred calls, and taking them apart and together again was more than half of all the code that LLVM had to
read. An address is one argument. The tuple lies on the stack of the function that says `by_address`, until LLVM has
taken all that are `inlined` in and keeps its fields in registers.
"""

from collections.abc import Container
from typing import Any, TypeVar

from llvmlite import ir
from llvmlite.ir.values import ArgumentAttributes
from numba import types
from numba.core import cgutils
from numba.core.errors import TypingError
from numba.core.typing.templates import AttributeTemplate
from numba.extending import infer_getattr, lower_builtin, lower_getattr_generic, models, register_model, type_callable

T = TypeVar("T")

_WORD = ir.LiteralStructType([ir.IntType(64)])  # in a struct: numba has arrays of plain words for other things
_WORD_BYTES = 8
_SIZE = ir.IntType(64)
_UNNOTED = "captures(none)" if "captures(none)" in ArgumentAttributes._known else "nocapture"  # by LLVM's version
_PROMISES = (_UNNOTED, "noalias")


class Addressed(types.Type):  # type: ignore[misc]
    """The address of a named tuple, whose fields are read as those of the tuple itself."""

    def __init__(self, tuple_type: types.BaseNamedTuple) -> None:
        self.tuple_type = tuple_type
        self.words = _words(tuple_type)
        super().__init__(name=f"Addressed({tuple_type.instance_class.__name__}#{tuple_type._code})")

    def field(self, name: str) -> tuple[types.Type | None, int]:
        """(type of a field, None if there is none of that name; words before it)."""
        before = 0
        for other, kind in zip(self.tuple_type.fields, self.tuple_type, strict=True):
            if other == name:
                return kind, before
            before += _words(kind)
        return None, before


def _words(kind: types.Type) -> int:
    """Words that a value takes in memory: as numba has it in registers, each number in a word of its own."""
    if isinstance(kind, types.BaseNamedTuple):
        return sum(_words(field) for field in kind)
    if isinstance(kind, types.Array):
        return 5 + 2 * int(kind.ndim)  # numba.np.arrayobj: five words, shape and strides
    if isinstance(kind, (types.Integer, types.Float, types.Boolean, types.Record)):
        return 1
    raise TypingError(f"by_address: a tuple with {kind} in it")


@register_model(Addressed)
class _AddressModel(models.PrimitiveModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: Addressed) -> None:
        super().__init__(manager, kind, ir.ArrayType(_WORD, kind.words).as_pointer())


def keep_to_registers(function: ir.Function, called: Container[str]) -> None:
    """Let LLVM keep what a function has by address in registers, field by field.

    It does where nobody else can have the address: so functions that are not taken in, whose names are in `called`,
    are handed a copy. And it is told what it sees only once all is one function: nobody writes there, and nobody notes
    the address.
    """
    for argument in function.args:
        if _is_address(argument.type):
            for promise in _PROMISES:
                argument.attributes.add(promise)
    for block in function.blocks:
        for call in [each for each in block.instructions if isinstance(each, ir.CallInstr)]:
            if call.callee.name in called:
                call.operands[:] = [_copied(block, call, operand) for operand in call.operands]


def _is_address(kind: ir.Type) -> bool:
    return isinstance(kind, ir.PointerType) and isinstance(kind.pointee, ir.ArrayType) and kind.pointee.element == _WORD


def _copied(block: ir.Block, call: ir.CallInstr, value: Any) -> Any:
    if not _is_address(value.type):
        return value
    kind = value.type.pointee
    builder = ir.IRBuilder(block)
    copy = cgutils.alloca_once(builder, kind)
    builder.position_before(call)
    cgutils.raw_memcpy(builder, copy, value, _SIZE(kind.count), _SIZE(_WORD_BYTES))
    return copy


@infer_getattr
class _Fields(AttributeTemplate):  # type: ignore[misc]
    key = Addressed

    def generic_resolve(self, kind: Addressed, name: str) -> types.Type | None:
        field, _ = kind.field(name)
        return Addressed(field) if isinstance(field, types.BaseNamedTuple) else field


@lower_getattr_generic(Addressed)  # type: ignore[untyped-decorator]
def _field(context: Any, builder: Any, kind: Addressed, address: Any, name: str) -> Any:
    field, before = kind.field(name)
    if isinstance(field, types.BaseNamedTuple):
        return _at(builder, address, before, ir.ArrayType(_WORD, _words(field)))
    return builder.load(_at(builder, address, before, context.get_value_type(field)))


def _at(builder: Any, address: Any, words: int, kind: ir.Type) -> Any:
    zero = ir.Constant(ir.IntType(32), 0)
    place = builder.gep(address, [zero, ir.Constant(ir.IntType(32), words)], inbounds=True)
    return builder.bitcast(place, kind.as_pointer())


def by_address(value: T) -> T:
    """The named tuple `value`, which compiled code that is handed it takes by its address; `value` in plain Python.

    The address is good until the function that asked for it returns. Fields are arrays, numbers, booleans, records and
    named tuples of these; TypingError, when it is compiled, for others.
    """
    return value


@type_callable(by_address)  # type: ignore[untyped-decorator]
def _type_of_address(context: Any) -> Any:
    def typed(value: types.Type) -> types.Type:
        return Addressed(value) if isinstance(value, types.BaseNamedTuple) else value

    return typed


@lower_builtin(by_address, types.Any)  # type: ignore[untyped-decorator]
def _address_of(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
    (value,), (kind,) = arguments, signature.args
    if not isinstance(kind, types.BaseNamedTuple):
        return value
    address = cgutils.alloca_once(builder, ir.ArrayType(_WORD, _words(kind)))
    _store(builder, kind, value, address, 0)
    return address


def _store(builder: Any, kind: types.BaseNamedTuple, value: Any, address: Any, before: int) -> None:
    for index, field in enumerate(kind):
        part = builder.extract_value(value, index)
        if isinstance(field, types.BaseNamedTuple):
            _store(builder, field, part, address, before)
        else:
            builder.store(part, _at(builder, address, before, part.type))
        before += _words(field)
