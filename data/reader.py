"""Examples by index, decoded and checked; what is done about those that cannot be read."""

import copy

import numpy as np

from flaxonomy.data import images, sources
from flaxonomy.errors import DataError, first_line, warn

REACH = 100  # neighbours that are tried in place of an example that cannot be read


class Reader:
  """What Grain maps: reader(index) is a decoded example, a dict of arrays. Picklable, for its worker processes.

  Index -1 is padding: zeros with mask 0. So is an example that cannot be read; "fault" is its index then, else -1.
  Nothing is raised here, in a thread or worker of Grain's: `checked` raises in the caller's.
  """

  def __init__(
    self, source: sources.Source, info, on_error: str = "raise", limit: int | None = None, fit: str = "stretch"
  ):
    """Reads nothing yet.

    Args:
      source: the examples.
      info: pipeline.Info.
      on_error: "raise" or "skip".
      limit: so many examples may be skipped; None: one in a thousand, and one at least.
      fit: to info.image_shape, as in `images.decode`.
    """
    self.records, self.info, self.on_error, self.fit = source.records, info, on_error, fit
    self.where = f"split {source.split!r} of dataset {info.name!r}"
    self.limit = limit if limit is not None else max(1, len(source.records) // 1000)
    self.faults = {}  # reasons by index
    self.reach = 0

  def standing_in(self, size: int) -> "Reader":
    """For training: the same, but that the next example that can be read stands in for one that cannot."""
    other = copy.copy(self)
    other.reach = min(REACH, size - 1)
    return other

  def stand_ins(self, size: int) -> np.ndarray:
    """[size] the same for a split that has been read whole: for each index, itself or the next that can be read."""
    every = np.arange(size)
    good = np.setdiff1d(every, list(self.faults))
    if not len(good):
      return every
    after = np.append(good, good[:1])[np.searchsorted(good, every)]
    return np.where((after - every) % size <= REACH, after, every)

  def __call__(self, index) -> dict:
    """The example of an index, or what stands for it."""
    index, fault, size = int(index), -1, len(self.records)
    for at in [(index + i) % size for i in range(self.reach + 1)] if index >= 0 else ():
      try:
        return self.arrays(at) | _row(at, 1.0, fault)
      except DataError:
        fault = index
    return self.blank() | _row(index, 0.0, fault)

  def arrays(self, index: int) -> dict:
    """What a batch has of an example, but for where it stands.

    Raises:
      DataError: it cannot be read.
    """
    image, label = self.example(index)
    return {"image": image, "label": np.int32(label)}

  def blank(self) -> dict:
    """The same of padding: zeros."""
    return {"image": np.zeros(self.info.image_shape, np.uint8), "label": np.int32(0)}

  def example(self, index: int) -> tuple[np.ndarray, int]:
    """(image [H, W, C] uint8, label) of an index.

    Raises:
      DataError: it cannot be read, or its label is none of the classes.
    """
    shape, classes = self.info.image_shape, len(self.info.class_names)
    try:
      record = self.records[index]
      image, label = images.decode(record["image"], shape[2], shape[:2], self.fit), int(record["label"])
    except Exception as error:  # files hold anything, and every library says so in its own way
      raise DataError(f"example {index} of {self.where}: {first_line(error)}") from None
    if not 0 <= label < classes:
      raise DataError(f"example {index} of {self.where}: label {label} is none of the {classes} classes")
    return image, label

  def checked(self, batch: dict) -> dict:
    """A batch of rows without "fault", once its faults have been told.

    Raises:
      DataError: the first fault, or with on_error "skip" the first one too many.
    """
    for index in batch["fault"][batch["fault"] >= 0].tolist():
      if index not in self.faults:
        self.faults[index] = self._reason(index)
        if self.on_error == "raise":
          raise DataError(f"{self.faults[index]}; mend it, or leave such out with --config.data.on_error=skip")
        if len(self.faults) > self.limit:
          raise DataError(f"{self.faults[index]}; that is one more than data.error_limit, {self.limit}")
        warn(f"{self.faults[index]}; skipped ({len(self.faults)} of at most {self.limit})")
    return {key: value for key, value in batch.items() if key != "fault"}

  def _reason(self, index) -> str:
    try:
      self.arrays(index)
      return f"example {index} of {self.where}: could not be read at first"
    except DataError as error:
      return str(error)


def _row(index, mask, fault) -> dict:
  return {"index": np.int32(index), "mask": np.float32(mask), "fault": np.int32(fault)}
