"""Export: the model as StableHLO with a symbolic batch size, its parameters as safetensors.

`model.jaxexport` is a function (variables, x) -> outputs for CPU, CUDA and TPU, which `jax.export.deserialize` reads;
`params.safetensors` holds the variables under their "collection/module/leaf" names, and `public.safetensors`, where the
model has a public namesake, under its names and in torch's layout. None of them needs this project.
"""

import json
from pathlib import Path

import jax
import numpy as np
import safetensors.numpy
from jax import export as jax_export

from flaxonomy.configs import base
from flaxonomy.data import text
from flaxonomy.errors import UserError, warn
from flaxonomy.models import interop
from flaxonomy.train import inference, loop, report, weights

PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-5  # of the exported function against the model, relative to the largest output


def export(path: str, which: str = "latest") -> Path:
  """Exports a trained run, reloads what was written and checks it against the model.

  Args:
    path: workdir.
    which: checkpoint, as in `inference.load`.

  Returns:
    The folder `export` in the workdir: model.jaxexport, params.safetensors, perhaps public.safetensors, config.json,
    labels.txt, of text its tokenizers, README.md.

  Raises:
    UserError: a task that serves nothing, or a reloaded function that differs from the model.
  """
  run = inference.load(path, loop.make_mesh(1), which)
  serve = run.task.serve
  if serve is None:
    raise UserError(f"task {run.config.task!r} has nothing to export")
  variables = jax.device_get(run.state.variables())
  (batch,) = jax_export.symbolic_shape("b")
  x = jax.ShapeDtypeStruct((batch, *serve.shape), serve.dtype)
  exported = jax_export.export(jax.jit(serve.call), platforms=PLATFORMS)(variables, x)
  serialized = exported.serialize()
  folder = run.folder / "export"
  folder.mkdir(exist_ok=True)
  (folder / "model.jaxexport").write_bytes(serialized)
  safetensors.numpy.save_file(weights.flatten(variables), folder / "params.safetensors")
  model = run.config.model
  if interop.has_namesake(model.name):
    try:
      public = interop.to_torch(model.name, variables, **model.fields)
      safetensors.numpy.save_file(public, folder / "public.safetensors")
    except UserError as error:  # such as a dense layer on a map that is not square
      warn(f"no public.safetensors: {error}")
  report.write_text(folder / "config.json", json.dumps(base.to_dict(run.config), indent=2) + "\n")
  report.write_text(folder / "labels.txt", "".join(f"{name}\n" for name in run.info.class_names))
  for name, tokenizer in run.info.tokenizers.items():
    text.save(tokenizer, folder / f"tokenizer_{name}.json")
  report.write_text(folder / "README.md", _readme(run, serve))
  _check(folder, serve, variables)
  return folder


def _check(folder, serve, variables):
  """Runs the reloaded function on the reloaded parameters beside the model, at two batch sizes."""
  function = jax_export.deserialize(bytearray((folder / "model.jaxexport").read_bytes()))
  restored = weights.unflatten(weights.read(folder / "params.safetensors"))
  for b in (1, 3):
    x = serve.example(jax.random.PRNGKey(b), b)
    ours, theirs = jax.jit(serve.call)(variables, x), function.call(restored, x)
    for key in ours:
      value, other = (np.asarray(outputs[key], np.float64) for outputs in (ours, theirs))
      error = float(np.abs(value - other).max() / np.maximum(np.abs(value).max(), 1e-30))
      if not error <= TOLERANCE:
        raise UserError(
          f"the exported function in {str(folder)!r} differs from the model in {key!r}: {error:.1e} relative"
        )


def _readme(run, serve) -> str:
  return f"""# {run.config.model.name}, trained on {run.info.name}, step {run.step}

`model.jaxexport` takes (variables, x): x is {np.dtype(serve.dtype).name} [b, {", ".join(map(str, serve.shape))}].

    import jax, numpy, safetensors.numpy
    variables = {{}}
    for path, value in safetensors.numpy.load_file("params.safetensors").items():
        *parents, leaf = path.split("/")
        holder = variables
        for name in parents:
            holder = holder.setdefault(name, {{}})
        holder[leaf] = value
    function = jax.export.deserialize(bytearray(open("model.jaxexport", "rb").read()))
    outputs = function.call(variables, x)
"""
