"""HuBERT checkpoints keep the shape of their convolution stack as a Python expression in a string; it is never run."""

import ast

ConvLayers = tuple[tuple[int, int, int], ...]  # (channels, kernel, stride)

_LONGEST_EXPRESSION = 500
_MOST_LAYERS = 64
_LARGEST_NUMBER = 1 << 20
_Value = int | tuple["_Value", ...] | list["_Value"]


def parse_conv_layers(expression: str) -> ConvLayers:
    """Evaluate `"[(512,10,5)] + [(512,3,2)] * 4"` without `eval`: whole numbers, tuples, lists, `+`, `-` and `*`.

    Raises:
        ValueError: anything else in the expression, naming it, or a result that is no list of integer triples.
    """
    try:
        if len(expression) > _LONGEST_EXPRESSION:
            raise ValueError(f"longer than {_LONGEST_EXPRESSION} characters")
        layers = _evaluate(ast.parse(expression.strip(), mode="eval").body)
        if not isinstance(layers, list) or not layers:
            raise ValueError("not a list")
        return tuple(_triple(layer) for layer in layers)
    except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
        raise ValueError(f"conv_feature_layers {expression[:_LONGEST_EXPRESSION]!r}: {error}") from error


def _triple(value: _Value) -> tuple[int, int, int]:
    match value:
        case [int(channels), int(kernel), int(stride)]:
            return channels, kernel, stride
    raise ValueError(f"{value!r} is not (channels, kernel, stride)")


def _evaluate(node: ast.expr) -> _Value:
    match node:
        case ast.Constant(value=int(number)) if not isinstance(number, bool) and abs(number) < _LARGEST_NUMBER:
            return number
        case ast.Tuple(elts=items):
            return tuple(_evaluate(item) for item in items)
        case ast.List(elts=items):
            return [_evaluate(item) for item in items]
        case ast.BinOp(left=left, op=op, right=right):
            a, b = _evaluate(left), _evaluate(right)
            match op, a, b:
                case ast.Add(), list(), list() if len(a) + len(b) <= _MOST_LAYERS:
                    return a + b
                case (ast.Mult(), list(layers), int(n)) | (ast.Mult(), int(n), list(layers)):
                    if len(layers) * n > _MOST_LAYERS:
                        raise ValueError(f"more than {_MOST_LAYERS} layers")
                    return layers * n
                case ast.Add(), int(), int():
                    return a + b
                case ast.Sub(), int(), int():
                    return a - b
                case ast.Mult(), int(), int():
                    return a * b
    raise ValueError(f"{ast.unparse(node)!r} is not arithmetic on lists of whole numbers")
