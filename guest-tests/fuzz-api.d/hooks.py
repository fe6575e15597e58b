"""Keeps what schemathesis asks for from harming the guest that uses the disk.

A limit of memory that is smaller than what the guest writes has its writes fail, which is what the guest asked to
be right about; a rate of one request a second would have it stand still. So limits become generous ones. Values that the
daemon has to refuse stay as they are.
"""

import schemathesis

GIB = 1 << 30
# Far more than the disk has.
MOST_SIZE = 2 * GIB


def whole(value):
    return isinstance(value, int) and not isinstance(value, bool)


def at_least(thing, key, least):
    """Makes a limit that is not 0, which is none, and not refused, at least this."""
    if whole(thing.get(key)) and 0 < thing[key] < least:
        thing[key] += least


def at_most(thing, key, most):
    if whole(thing.get(key)) and most < thing[key] < 1 << 64:
        thing[key] %= most


@schemathesis.hook
def before_call(context, case, kwargs):
    body = case.body
    if case.path == "/v1/disk" and isinstance(body, dict):
        at_least(body, "mem_limit_bytes", GIB)
        at_most(body, "host_reserve_bytes", GIB)
        at_most(body, "size_bytes", MOST_SIZE)
        rates = body.get("rates")
        for rate in rates.values() if isinstance(rates, dict) else []:
            if isinstance(rate, dict):
                at_least(rate, "operations_per_second", 100_000)
                at_least(rate, "bytes_per_second", GIB)
    if (case.path_parameters or {}).get("name") == "mem_limit" and case.body not in (None, ""):
        text = body.decode(errors="replace") if isinstance(body, bytes) else str(body)
        if text.strip()[:1].isdigit():
            case.body = "4G"
