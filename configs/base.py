"""The configuration of a run: plain typed dataclasses, values only.

A config is data. It names its model, dataset, optimizer and schedule; the code that knows those names checks them.
`override` and `validate` give every mistake as one line. Fields that are `None` mean "the default of what is named".
"""

import copy
import dataclasses
from dataclasses import dataclass, field
from typing import Any, Optional

from flaxonomy.configs import values
from flaxonomy.errors import UserError, shown, unknown

# Of pixels in [0, 1], for each channel.
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CIFAR_MEAN, CIFAR_STD = (0.491, 0.482, 0.447), (0.247, 0.243, 0.262)


@dataclass
class Model:
  """Which model, and the fields of its module."""

  name: str = "deep_convnet"  # registry name, see flaxonomy.models.MODELS
  fields: dict = field(default_factory=dict)  # module fields, e.g. {"dropout": 0.5}; num_classes comes from the data
  init_from: Optional[str] = None  # start from a safetensors file (public, exported), darknet's .weights, or a workdir
  init_new: tuple[str, ...] = ()  # regular expressions: matching parameters start anew all the same


@dataclass
class Augment:
  """Random changes to training images, on the device. Zero, False or None switches one off.

  The order is fixed: one affine map (random-resized crop, crop, scale, rotation, translation, flips), colour,
  cutout, mixup. Scenes with boxes: mosaic, colour, zoom-out, crop by overlap, scale, translation, flip.
  """

  random_resized_crop: Optional[tuple[float, float]] = None  # (least, most) area of the crop, Szegedy et al. 2014
  crop_padding: int = 0  # pad by this many pixels and crop back at random, He et al. 2015
  rotate: float = 0.0  # at most this many degrees either way
  translate: float = 0.0  # at most this share of height and width either way
  scale: Optional[tuple[float, float]] = None  # zoom factor drawn from (least, most); above 1 enlarges
  flip_horizontal: bool = False
  flip_vertical: bool = False
  brightness: float = 0.0  # added offset, at most this share of full scale either way
  contrast: float = 0.0  # contrast factor drawn from [1 - c, 1 + c] about the image's mean
  saturation: float = 0.0  # factor drawn from [1 - s, 1 + s] about the grey image; colour images only
  hue: float = 0.0  # turned by at most this share of the circle either way; scenes only
  color_pca: float = 0.0  # deviation of ImageNet's colour components, 0.1 in Krizhevsky et al. 2012; colour images only
  cutout: int = 0  # side of the square set to zero, in pixels, DeVries and Taylor 2017
  mixup: float = 0.0  # alpha of the Beta distribution, Zhang et al. 2018
  zoom_out: float = 0.0  # at most so many times the side, every other image, 4 in Liu et al. 2016, 3.6; scenes only
  iou_crop: bool = False  # parts that overlap an object by a drawn least IoU, Liu et al. 2016, 2.2; scenes only
  mosaic: float = 0.0  # probability of four images in one, Bochkovskiy et al. 2020, 3.3; scenes only


@dataclass
class Text:
  """How text becomes tokens, and tokens batches; for tasks on text."""

  tokenizer: str = "chars"  # "chars", "bytes", "words", "wordpunct", "bpe", "wordpiece" of the training text; or a file
  vocab_size: Optional[int] = None  # most tokens, special ones included; None: all, or 8,192 of bpe and wordpiece
  lowercase: bool = False
  length: int = 128  # tokens of a language model's window; of other sequences the most, special tokens included
  streams: bool = False  # the corpus as batch_size streams, window behind window, with the state carried over
  buckets: tuple[int, ...] = ()  # sequences are padded to the least of these lengths that holds them; (): to `length`
  shared: bool = False  # one tokenizer for both sides of pairs, as a file is in any case
  languages: tuple[str, str] = ("en", "de")  # source and target of pairs


@dataclass
class Series:
  """How a series becomes examples; for the task "forecasting"."""

  column: Optional[str] = None  # of a CSV file; None: its last one
  window: int = 64  # values that the model sees
  horizon: int = 1  # values behind them that it predicts
  period: int = 1  # of the season, for the seasonal-naive forecast and MASE


@dataclass
class Scenes:
  """How annotated images become examples; for the task "detection"."""

  objects: int = 32  # most objects of an image; of more, the largest are kept
  masks: bool = False  # read the objects' masks, too; for models that learn from them
  short_side: Optional[int] = None  # with fit "contain": its pixels, if the image then fits; None: as large as fits
  proposals: int = 0  # boxes of selective search, for models that make none of their own


@dataclass
class Data:
  """Which dataset, how it is read, batched and changed."""

  name: str = "digits"  # a TFDS name, one of our own builders, or a format of files such as "folder" or "coco_json"
  data_dir: Optional[str] = None  # where TFDS datasets lie prepared, or the files; None: TFDS's folder, ours: the cache
  train_split: str = "train"  # a TFDS split, e.g. "train[:90%]"
  eval_split: str = "test"
  image_size: Optional[tuple[int, int]] = None  # (height, width) to resize to, bilinear; None: as stored
  fit: str = "stretch"  # to image_size: "stretch"; "cover": short side first, then the central part; scenes: "contain"
  crop_size: Optional[tuple[int, int]] = None  # (height, width) the model sees: a random part in training; None: all
  eval_crops: int = 1  # parts of crop_size averaged in evaluation: 1 central, or 10: corners and centre, mirrored too
  eval_scales: tuple[float, ...] = (1.0,)  # the same of the image enlarged by each factor, averaged
  channels: Optional[int] = None  # 1 (grey) or 3 (colour); None: as stored
  batch_size: int = 128  # global, over all devices and processes
  eval_batch_size: int = 500
  on_device: Optional[bool] = None  # keep the whole set on the devices; None: if it is under on_device_limit
  on_device_limit: int = 512  # MiB of decoded examples
  workers: int = 0  # Grain worker processes; 0 reads with threads
  on_error: str = "raise"  # at an example that cannot be read: "raise", or "skip" it with a warning
  error_limit: Optional[int] = None  # most skipped ones in each process; None: one in a thousand, at least one
  mean: tuple[float, ...] = (0.0,)  # subtracted after scaling to [0, 1], for each channel or for all
  std: tuple[float, ...] = (1.0,)  # divided by after that
  augment: Augment = field(default_factory=Augment)
  text: Text = field(default_factory=Text)
  series: Series = field(default_factory=Series)
  scenes: Scenes = field(default_factory=Scenes)


@dataclass
class Optim:
  """Optimizer and learning-rate schedule, by name; see train/optim.py for each one's defaults."""

  name: str = "adam"
  lr: float = 1e-3  # the schedule's peak
  momentum: Optional[float] = None
  b1: Optional[float] = None
  b2: Optional[float] = None
  rho: Optional[float] = None  # adadelta's and rmsprop's decay of the mean square
  eps: Optional[float] = None
  centered: bool = False  # rmsprop: subtract the squared mean gradient
  weight_decay: float = 0.0  # L2 in the gradient for sgd to adam; decoupled for adamw, lamb, muon; LARS's own for lars
  weight_decay_exclude: tuple[str, ...] = (r"(^|/)(bias|scale)$",)  # regular expressions searched in "module/leaf"
  freeze: tuple[str, ...] = ()  # regular expressions: matching parameters are never changed
  clip_norm: Optional[float] = None  # global norm to which gradients are clipped
  schedule: str = "constant"
  warmup_steps: int = 0  # linear from 0 before the schedule starts (noam: its own warm-up)
  boundaries: tuple[int, ...] = ()  # step: multiply by decay_rate at each of these steps
  decay_rate: float = 0.1  # step, exponential: the factor
  decay_every: int = 1  # exponential: steps for one factor
  staircase: bool = False  # exponential: change only every decay_every steps
  final_fraction: float = 0.0  # cosine, linear: lr at the end as a share of the peak
  one_cycle_start: float = 0.04  # one-cycle: first lr as a share of the peak
  one_cycle_peak: float = 0.3  # one-cycle: when the peak is reached, as a share of all steps
  one_cycle_end: float = 1e-4  # one-cycle: last lr as a share of the first
  model_size: int = 512  # noam: d_model


@dataclass
class Train:
  """How long, how often, how precisely and on what."""

  steps: int = 1000
  eval_every: Optional[int] = None  # steps; None: ten times a run. Also evaluated at the end
  checkpoint_every: Optional[int] = None  # steps; None: as eval_every
  log_every: int = 10  # steps between rows of metrics.jsonl
  on_nan: str = "stop"  # at numbers that are not finite: "stop", "skip" the step, or "rollback"; see train/numbers.py
  nan_limit: int = 10  # skip and rollback: so many bad steps among the last 1,000 end the run
  keep_last: int = 3  # checkpoints
  keep_best: int = 1  # checkpoints with the best best_metric
  best_metric: Optional[str] = None  # None: the task's own; a leading "-" means lower is better
  steps_per_dispatch: Optional[int] = None  # steps in one compiled loop; None: 1 on CPUs, 16 elsewhere
  accumulate: Optional[int] = None  # microbatches summed before one update; None: of <= 8 examples on CPUs, else one
  loss: str = "softmax"  # cross-entropy of the "softmax"; or, of a sigmoid for each class, "bce" or "mse"
  label_smoothing: float = 0.0
  ema_decay: Optional[float] = None  # evaluate a moving average of the parameters; rises as (1 + t) / (10 + t) to this
  sync_batchnorm: bool = True  # batch statistics over all devices rather than each one's own
  zero: bool = False  # shard parameters and optimizer state over the devices
  dtype: str = "float32"  # compute: "float32" or "bfloat16"; parameters and losses stay float32
  devices: Optional[int] = None  # use the first so many; None: all
  cpu_devices: int = 2  # without an accelerator launch.py splits the CPU into so many devices
  tensorboard: Optional[bool] = None  # write TensorBoard events; None: if tensorboardX is installed


@dataclass
class Decode:
  """How a model that answers writes; for the task "translation". Evaluation, chat, predict and export write so."""

  beams: int = 1  # 1: the likeliest token each time
  penalty: str = "gnmt"  # what beams' log probabilities are divided by: "gnmt", Wu et al. 2016, or "power" of length
  length_penalty: float = 0.6  # its exponent
  max_ratio: float = 1.0  # tokens written at most: so many for each of the source's, padding included,
  max_extra: int = 50  # and these: Vaswani et al. 2017, section 6.1
  bleu: bool = True  # score what is written with sacreBLEU, which needs the extra "text"


@dataclass
class Detect:
  """What a detector reports; for the task "detection". None: what the model's paper or public code has."""

  score: Optional[float] = None  # what a probability must be above, to count in an evaluation
  threshold: Optional[float] = None  # IoU above which the less likely of two boxes of a class is left out
  most: Optional[int] = None  # of an image
  draw_score: float = 0.1  # the same of pictures, and of what `predict` writes
  draw_threshold: float = 0.45


@dataclass
class Study:
  """Several runs side by side in one picture; see train/study.py."""

  compare: dict = field(default_factory=dict)  # {label: {"optim.name": "adam", ...}}: a run each, this config changed
  picture: Optional[str] = None  # a picture that needs no training, by name


@dataclass
class Config:
  """One run: a function of this and nothing else."""

  task: str = "classification"
  model: Model = field(default_factory=Model)
  data: Data = field(default_factory=Data)
  optim: Optim = field(default_factory=Optim)
  train: Train = field(default_factory=Train)
  decode: Decode = field(default_factory=Decode)
  detect: Detect = field(default_factory=Detect)
  study: Study = field(default_factory=Study)
  seed: int = 0


def variant(name: str, known: tuple[str, ...]) -> str:
  """The argument behind a config file's colon, once it has been found to be one of the known ones.

  Raises:
    UserError: it is not.
  """
  if name not in known:
    raise unknown("variant", name, known, "(behind the colon of --config)")
  return name


def override(config: Config, changes: dict[str, Any]) -> Config:
  """A new config with some fields changed.

  Args:
    config: left as it is.
    changes: {"optim.lr": 1e-3, ...}; below a dict field any key is taken: {"model.fields.dropout": 0.2}.

  Returns:
    A deep copy with the changes, validated.

  Raises:
    UserError: unknown field or wrong type, with the nearest names.
  """
  config = copy.deepcopy(config)
  for path, value in changes.items():
    check_field(path)
    *parents, last = path.split(".")
    holder = config
    for name in parents:
      holder = holder.setdefault(name, {}) if isinstance(holder, dict) else getattr(holder, name)
      if not isinstance(holder, dict) and not dataclasses.is_dataclass(holder):
        raise UserError(f"config field {shown(path)} cannot be set: {name!r} is {shown(holder)}")
    if isinstance(holder, dict):
      holder[last] = value
    else:
      setattr(holder, last, value)
  return validate(config)


def check_field(path: str) -> type:
  """The annotated type of a dotted field; below a dict field, `object`.

  Raises:
    UserError: there is no such field, or it is a group of fields.
  """
  kind = Config
  names = path.split(".")
  for i, name in enumerate(names):
    if kind is dict:
      return object
    fields = {f.name: f.type for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else {}
    if name not in fields:
      every = list(field_types())
      raise unknown("config field", path, [p for p in every if p.startswith(".".join(names[:i]))] or every)
    kind = fields[name]
  if dataclasses.is_dataclass(kind):
    inside = [f"{path}.{f.name}" for f in dataclasses.fields(kind)]
    raise UserError(f"config field {path!r} is a group; set one of its fields: {', '.join(inside)}")
  return kind


def field_types(kind: type = Config, prefix: str = "") -> dict[str, Any]:
  """{dotted field: annotated type} of every leaf field."""
  found = {}
  for f in dataclasses.fields(kind):
    if dataclasses.is_dataclass(f.type):
      found |= field_types(f.type, f"{prefix}{f.name}.")
    else:
      found[prefix + f.name] = f.type
  return found


def validate(config: Config) -> Config:
  """The config itself, once every field has been found to have its type and a possible value.

  Integers are taken for float fields (and stored as floats), lists for tuples.

  Raises:
    UserError: names the field, what it must be and what it is.
  """
  for path, kind in field_types().items():
    *parents, last = path.split(".")
    holder = config
    for name in parents:
      holder = getattr(holder, name)
    value = getattr(holder, last)
    try:
      setattr(holder, last, values.convert(value, kind))
    except TypeError:
      raise UserError(
        f"config field {path!r} must be {values.describe(kind)}, not {shown(value)} ({type(value).__name__})"
      ) from None
    except (OverflowError, RecursionError):
      raise UserError(f"config field {path!r} is out of range: {shown(value)}") from None
  for path, least in _AT_LEAST.items():
    value = flatten(config)[path]
    if value is not None and value < least:
      raise UserError(f"config field {path!r} must be at least {least}, not {value}")
  for path, (low, high) in _BETWEEN.items():
    value = flatten(config)[path]
    if value is not None and not low <= value < high:
      raise UserError(f"config field {path!r} must be from {low} to below {high}, not {value}")
  for path in ("optim.clip_norm", "optim.eps"):
    if (value := flatten(config)[path]) is not None and value <= 0:
      raise UserError(f"config field {path!r} must be above 0, not {value}")
  for path in ("data.augment.scale", "data.augment.random_resized_crop"):
    if (value := flatten(config)[path]) is not None and not 0 < value[0] <= value[1]:
      raise UserError(f"config field {path!r} must be (least, most) with 0 < least <= most, not {value}")
  if config.model.init_new and config.model.init_from is None:
    raise UserError("config field 'model.init_new' says what not to take from 'model.init_from', which is not set")
  if min(config.data.eval_scales, default=0) <= 0:
    raise UserError(f"config field 'data.eval_scales' must be positive numbers, not {shown(config.data.eval_scales)}")
  if min(config.data.std, default=0) <= 0:
    raise UserError(f"config field 'data.std' must be positive numbers, not {shown(config.data.std)}")
  for path, known in _ONE_OF.items():
    if (value := flatten(config)[path]) not in known:
      raise unknown(path, value, map(str, known))
  return config


_AT_LEAST = {
  "data.batch_size": 1, "data.eval_batch_size": 1, "data.workers": 0, "data.augment.crop_padding": 0,
  "data.augment.cutout": 0, "data.augment.mixup": 0, "data.augment.rotate": 0, "optim.weight_decay": 0,
  "train.steps": 1, "train.eval_every": 1, "train.checkpoint_every": 1, "train.log_every": 1, "train.keep_last": 1,
  "train.keep_best": 0, "train.steps_per_dispatch": 1, "train.accumulate": 1, "train.devices": 1,
  "train.cpu_devices": 1, "train.nan_limit": 1,
  "data.augment.color_pca": 0, "data.error_limit": 0, "optim.lr": 0, "optim.warmup_steps": 0, "optim.decay_every": 1,
  "seed": 0, "data.text.length": 2, "data.text.vocab_size": 2, "data.series.window": 2, "data.series.horizon": 1,
  "data.series.period": 1, "decode.beams": 1, "decode.length_penalty": 0, "decode.max_ratio": 0, "decode.max_extra": 1,
  "data.scenes.objects": 1, "data.scenes.short_side": 1, "data.scenes.proposals": 0, "detect.most": 1,
  "data.augment.zoom_out": 0,
}  # fmt: skip
_ONE_OF = {
  "train.dtype": ("float32", "bfloat16"), "train.on_nan": ("stop", "skip", "rollback"),
  "data.on_error": ("raise", "skip"), "data.fit": ("stretch", "cover", "contain"), "data.eval_crops": (1, 10),
  "train.loss": ("softmax", "bce", "mse"), "decode.penalty": ("gnmt", "power"),
}  # fmt: skip
_BETWEEN = {
  "optim.momentum": (0, 1), "optim.b1": (0, 1), "optim.b2": (0, 1), "optim.rho": (0, 1), "train.ema_decay": (0, 1),
  "train.label_smoothing": (0, 1), "data.augment.brightness": (0, 1), "data.augment.contrast": (0, 1),
  "data.augment.translate": (0, 1), "data.augment.saturation": (0, 1),
  "data.augment.hue": (0, 1), "data.augment.mosaic": (0, 1), "detect.score": (0, 1), "detect.threshold": (0, 1),
  "detect.draw_score": (0, 1), "detect.draw_threshold": (0, 1),
}  # fmt: skip


def flatten(config: Config) -> dict[str, Any]:
  """{dotted field: value} of every leaf field."""
  found = {}
  for path in field_types():
    value = config
    for name in path.split("."):
      value = getattr(value, name)
    found[path] = value
  return found


def to_dict(config: Config) -> dict:
  """Nested dict of plain values, as config.json holds it."""
  return dataclasses.asdict(config)


def from_dict(values: dict) -> Config:
  """The config that `to_dict` wrote; fields that a later version added keep their defaults.

  Raises:
    UserError: a field that does not exist, or a value of the wrong type.
  """

  def leaves(tree, kind, prefix):
    for name, value in tree.items():
      inner = {f.name: f.type for f in dataclasses.fields(kind)}.get(name)
      if dataclasses.is_dataclass(inner) and isinstance(value, dict):
        yield from leaves(value, inner, f"{prefix}{name}.")
      else:
        yield f"{prefix}{name}", value

  return override(Config(), dict(leaves(values, Config, "")))
