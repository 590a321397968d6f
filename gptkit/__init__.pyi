from gptkit.errors import DivergedError as DivergedError
from gptkit.errors import GptkitError as GptkitError
from gptkit.errors import RecipeError as RecipeError
from gptkit.errors import StoppedError as StoppedError
from gptkit.errors import UsageError as UsageError
from gptkit.loading import load as load
from gptkit.recipe.recipe import Recipe as Recipe
from gptkit.run import Run as Run
from gptkit.run import dataset as dataset
from gptkit.run import import_model as import_model
from gptkit.run import resume as resume
from gptkit.run import train as train
from gptkit.run import trainer as trainer
from gptkit.sampling.model import Model as Model

__version__: str
