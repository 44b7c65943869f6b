"""What pydantic found wrong, in one line."""

from collections.abc import Iterable

from pydantic import ValidationError

from simkit.errors import suggestion


def first_error(error: ValidationError, place: str, known: Iterable[str]) -> str:
    """`place: field=value: what is wrong`, of the first thing that is; an unknown key is held to the names `known`.

    Unknown keys come first: a misspelt key is also a missing one, and the misspelling is the better thing to say.
    """
    all_found = error.errors(include_url=False)
    found = next((e for e in all_found if e["type"] == "extra_forbidden"), all_found[0])
    path = ".".join(str(part) for part in found["loc"])
    at = f"{place}: {path}" if path else place
    if found["type"] == "extra_forbidden":
        return f"{at}: unknown key; {suggestion(str(found['loc'][-1]), known)}"
    if found["type"] == "missing":
        # who has forgotten several keys should not be told of them one by one
        others = [".".join(map(str, e["loc"])) for e in all_found if e["type"] == "missing" and e is not found]
        return f"{at}: is missing" + (f", and so are {', '.join(others)}" if others else "")
    if found["type"] == "union_tag_invalid":
        kinds = [kind.strip(" '") for kind in found["ctx"]["expected_tags"].split(",")]
        return f"{at}.kind={found['ctx']['tag']!r}: is not known; {suggestion(found['ctx']['tag'], kinds)}"
    if found["type"] == "union_tag_not_found":
        return f"{at}: is no mapping with a 'kind'; add one"
    if found["type"] in ("tuple_type", "list_type"):  # YAML has lists only
        return f"{at}: input should be a valid list"
    if found["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{at}: is not a mapping of keys to values"
    message = found["msg"].removeprefix("Value error, ").replace("\n", " ")
    message = message[:1].lower() + message[1:]
    if isinstance(found["input"], dict):  # a rule about several keys: the message names them
        return f"{at}: {message}"
    value = repr(found["input"])
    shown = value if len(value) <= 60 else value[:57] + "..."
    return f"{at}={shown}: {message}" if path else f"{at}: {message}"
