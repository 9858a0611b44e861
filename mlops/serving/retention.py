"""Which images may go: never one that an environment or a rollback needs, nor the newest of each product.

Leaves to others: knowing what environments need (its caller passes the digests).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from mlops.serving.oci_layout import ImageLayout, StoredImage

DEFAULT_KEEP = 5


@dataclass(frozen=True)
class PrunePlan:
    """What would go and what stays."""

    removed: tuple[StoredImage, ...]
    kept: tuple[tuple[StoredImage, str], ...]
    """With the reason."""
    needed: frozenset[str] = frozenset()
    """By environments; also images that have no name any more, since their version was built anew."""


def plan_prune(images: Sequence[StoredImage], *, needed: Collection[str], keep: int = DEFAULT_KEEP) -> PrunePlan:
    """Keep what is needed and the `keep` newest versions of each product.

    Args:
        images: All images of the layout.
        needed: Digests that an environment serves, wants, or would roll back to.
        keep: Per product, at least 1.
    """
    if keep < 1:
        raise ValueError("at least one image of each product is kept")
    by_product: dict[str, list[StoredImage]] = {}
    for image in images:
        by_product.setdefault(image.reference.partition(":")[0], []).append(image)
    newest = {
        image.digest
        for group in by_product.values()
        for image in sorted((item for item in group if _number(item) is not None), key=_order, reverse=True)[:keep]
    }
    removed: list[StoredImage] = []
    kept: list[tuple[StoredImage, str]] = []
    for image in images:
        if image.digest in needed:
            kept.append((image, "an environment or its rollback needs it"))
        elif image.digest in newest:
            kept.append((image, f"one of the {keep} newest"))
        else:
            removed.append(image)
    return PrunePlan(removed=tuple(removed), kept=tuple(kept), needed=frozenset(needed))


def apply_prune(layout: ImageLayout, plan: PrunePlan) -> int:
    """Forget the planned images, then delete blobs that no image names; returns the bytes freed.

    A digest that is kept under another name stays.
    """
    kept = {image.digest for image, _ in plan.kept}
    layout.remove_images({image.digest for image in plan.removed} - kept)
    return layout.remove_unused_blobs(keeping=plan.needed)


def _number(image: StoredImage) -> int | None:
    version = image.reference.partition(":")[2]
    return int(version) if version.isdecimal() else None


def _order(image: StoredImage) -> int:
    return _number(image) or 0
