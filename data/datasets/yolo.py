"""YOLO's texts, a file for each image, and the file that names the classes."""

import re
from pathlib import Path

from flaxonomy.data.datasets import annotations
from flaxonomy.errors import DataError, shown


def objects(path: Path, labels: dict[int, int]) -> annotations.Annotation:
  """What a text says of an image: a line for each object, its class and its box or the points of its outline.

  Args:
    path: the file.
    labels: by the number of the class.

  Raises:
    DataError: other lines, or unknown classes.
  """
  where, boxes, found, outlines = repr(str(path)), [], [], []
  for i, line in enumerate(annotations.content(path).decode("utf-8", "replace").splitlines(), 1):
    cells = line.split()
    if not cells:
      continue
    numbers = [annotations.number(cell) for cell in cells]
    if None in numbers or len(numbers) % 2 == 0 or len(numbers) < 5:
      raise DataError(f"{where}: line {i} must be 'class x y width height' or 'class x y x y x y ...', in numbers")
    label, *numbers = numbers
    if label not in labels:
      raise DataError(f"{where}: line {i}: class {shown(cells[0])} is none of the {len(labels)} that are named")
    if len(numbers) == 4:
      x, y, width, height = numbers
      boxes.append((x - width / 2, y - height / 2, x + width / 2, y + height / 2))
      outlines.append(None)
    else:
      boxes.append((min(numbers[::2]), min(numbers[1::2]), max(numbers[::2]), max(numbers[1::2])))
      outlines.append([numbers])
    found.append(labels[int(label)])
  told = None if None in outlines or not outlines else outlines
  return annotations.annotation(where, boxes, found)._replace(masks=told, relative=True)


def has_outlines(path: Path) -> bool:
  """Whether a line has more numbers than a box."""
  return any(len(line.split()) > 5 for line in annotations.content(path).splitlines())


def names(path: Path) -> tuple[dict[int, str], dict[str, str]]:
  """({number: name of a class}, {split: folder}) of a YAML file or a plain list of names.

  Of YAML this reads what such files hold: `names` as a list or by number, in lines or in brackets, and lines
  `train: folder`.

  Raises:
    DataError: it names no classes.
  """
  text = annotations.content(path).decode("utf-8", "replace").lstrip("\ufeff")
  lines = [line.rstrip() for line in text.splitlines() if line.strip()]
  if path.suffix.lower() not in (".yaml", ".yml"):
    return dict(enumerate(line.strip() for line in lines)), {}
  lines = [bare for line in lines if (bare := re.sub(r"(^|\s)#.*", "", line).rstrip())]
  folders, items = {}, []
  for i, line in enumerate(lines):
    if found := re.match(r"(\w+)\s*:\s*(.*)", line):
      if found[1] != "names":
        folders[found[1]] = _unquoted(found[2])
        continue
      behind = lines[i + 1 :]
      inside = [x for x, after in zip(behind, _before_next_key(behind)) if after]
      items = _in_brackets(" ".join([found[2], *inside])) if found[2] else [x.strip() for x in inside]
  classes = {}
  for place, item in enumerate(items):
    numbered = re.fullmatch(r"['\"]?(\d{1,6})['\"]?\s*:\s*(.+)", item)
    classes[int(numbered[1]) if numbered else place] = _unquoted(numbered[2] if numbered else item.removeprefix("- "))
  if not classes or len(classes) != len(items):
    raise DataError(f"{str(path)!r} names no classes: it needs 'names:', and a name for each number below that")
  return dict(sorted(classes.items())), folders


def _before_next_key(lines) -> list[bool]:
  """Whether each line still belongs to the key above."""
  inside, found = True, []
  for line in lines:
    inside = inside and not re.match(r"\w+\s*:(\s|$)", line)
    found.append(inside)
  return found


def _in_brackets(text: str) -> list[str]:
  inner = re.match(r"[\[{](.*?)[\]}]", text)
  return [x.strip() for x in re.findall(r"""(?:'[^']*'|"[^"]*"|[^,'"])+""", inner[1]) if x.strip()] if inner else []


def _unquoted(text: str) -> str:
  text = text.strip()
  return text[1:-1] if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"" else text
