"""Pascal VOC's XML, a file for each image."""

from pathlib import Path
from xml.etree import ElementTree

from flaxonomy.data import masks
from flaxonomy.data.datasets import annotations
from flaxonomy.errors import DataError, first_line, shown

CLASSES = (
  "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable", "dog", "horse",
  "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


class _Tree(ElementTree.TreeBuilder):
  """Refuses declarations, by which a small file could grow without end."""

  def doctype(self, name, public, system):
    """Told of <!DOCTYPE, before any entity is."""
    raise ValueError("it has a <!DOCTYPE, which is not trusted")


def read(path: Path) -> ElementTree.Element:
  """An annotation of VOC's.

  Raises:
    DataError: no XML, or none of an annotation.
  """
  data = annotations.content(path)
  try:
    root = ElementTree.fromstring(data, ElementTree.XMLParser(target=_Tree()))
    if root.tag != "annotation":
      raise ValueError(f"it is of <{root.tag[:50]}>, not of <annotation>")
  except Exception as error:  # ParseError, and what decoders raise
    raise DataError(f"{str(path)!r} cannot be read: {first_line(error)}") from None
  return root


def names(root: ElementTree.Element) -> set[str]:
  """The classes of an annotation's objects."""
  return {(thing.findtext("name") or "").strip() for thing in root.findall("object")}


def objects(path: Path, mask: Path | None, labels: dict[str, int]) -> annotations.Annotation:
  """What a file of VOC's says of an image.

  Args:
    path: the file.
    mask: of the image whose values number the objects, or None.
    labels: by name.

  Raises:
    DataError: damaged, or of an unknown class.
  """
  where, boxes, found, crowd = repr(str(path)), [], [], []
  root = read(path)
  for thing in root.findall("object"):
    name = (thing.findtext("name") or "").strip()
    if name not in labels:
      raise DataError(f"{where}: class {shown(name)} is none of {shown(', '.join(labels))}")
    box = [annotations.number(thing.findtext(f"bndbox/{edge}")) for edge in ("xmin", "ymin", "xmax", "ymax")]
    boxes.append(annotations.numbers(box, 4, f"{where}: bndbox of {shown(name)}"))
    found.append(labels[name])
    crowd.append((thing.findtext("difficult") or "").strip() == "1")
  size = tuple(int(annotations.number(root.findtext(f"size/{side}")) or 0) for side in ("height", "width"))
  numbered = None if mask is None else masks.Instances(mask, tuple(range(1, len(found) + 1)))
  told = annotations.annotation(where, boxes, found, crowd, size=size if min(size) > 0 else None)
  return told._replace(masks=numbered, first=1)
