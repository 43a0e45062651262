"""Pages of HTML that need nothing beside them: one script of their own, which alone may run, whatever a word says."""

import base64
import hashlib
from collections.abc import Callable, Mapping
from typing import Any

from markupsafe import Markup


def render(
    folder: str,
    template: str,
    context: Mapping[str, Any],
    *,
    script: str,
    filters: Mapping[str, Callable[..., str]] | None = None,
) -> str:
    """A template of the package, filled; everything in `context` is escaped unless it is `Markup`.

    Args:
        folder: of the template, below the package.
        script: given to the template as `script`, with `script_hash` for its Content-Security-Policy.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("sightline", folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= filters or {}
    own = {"script": Markup(script), "script_hash": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}
    return environment.get_template(template).render({**context, **own})
