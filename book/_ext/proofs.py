"""Proofs with labels: sphinx-proof gives all proofs of a page one id, and so all theorems' contents."""

from typing import Any

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx_proof.directive import ProofDirective


class LabelledProof(ProofDirective):
    """The directive `prf:proof` with an optional title, and a `label` that becomes its id."""

    optional_arguments = 1
    option_spec = ProofDirective.option_spec | {"label": directives.unchanged_required}

    def run(self) -> list[nodes.Node]:
        """Return the proof's node."""
        if self.arguments:
            self.content[0] = f"{self.arguments[0]}. {self.content[0]}"
        (proof,) = super().run()
        proof[0]["ids"] = [self.options.get("label") or f"proof-{self.env.new_serialno('proof')}"]
        return [proof]


def number_contents(app: Sphinx, doctree: nodes.document) -> None:
    """Give the content of each theorem of a page its own id."""
    same = [node for node in doctree.findall(nodes.section) if node["ids"] == ["proof-content"]]
    for number, node in enumerate(same, start=1):
        node["ids"] = [f"proof-content-{number}"]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register with Sphinx."""
    app.setup_extension("sphinx_proof")
    app.add_directive_to_domain("prf", "proof", LabelledProof, override=True)
    app.connect("doctree-read", number_contents)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
