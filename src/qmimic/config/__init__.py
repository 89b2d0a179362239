"""The recipe: every setting of a run, typed, checked when it is read, saved resolved in the run folder.

Knows nothing of the code that uses it. A recipe is YAML on disk; `key.sub=value` on the command line changes it.
"""

from qmimic.config.base import InputSize as InputSize
from qmimic.config.base import Levels as Levels
from qmimic.config.base import Section as Section
from qmimic.config.base import Side as Side
from qmimic.config.base import fingerprint as fingerprint
from qmimic.config.listing import Setting as Setting
from qmimic.config.listing import settings as settings
from qmimic.config.reading import embedded_recipes as embedded_recipes
from qmimic.config.reading import explain as explain
from qmimic.config.reading import load_recipe as load_recipe
from qmimic.config.reading import load_tree as load_tree
from qmimic.config.reading import put as put
from qmimic.config.reading import recipe_from as recipe_from
from qmimic.config.reading import recipe_text as recipe_text
from qmimic.config.reading import save_recipe as save_recipe
from qmimic.config.recipe import Recipe as Recipe
from qmimic.config.sections import REST as REST
from qmimic.config.sections import AugmentConfig as AugmentConfig
from qmimic.config.sections import DataConfig as DataConfig
from qmimic.config.sections import DetectorConfig as DetectorConfig
from qmimic.config.sections import FineTuningConfig as FineTuningConfig
from qmimic.config.sections import Int8Config as Int8Config
from qmimic.config.sections import RunConfig as RunConfig
from qmimic.config.sections import ScheduleConfig as ScheduleConfig
from qmimic.config.sections import StudentConfig as StudentConfig
from qmimic.config.sections import TeacherConfig as TeacherConfig
from qmimic.config.teacher_file import TeacherFileConfig as TeacherFileConfig
from qmimic.config.teaching import MimicConfig as MimicConfig
from qmimic.config.teaching import PruningConfig as PruningConfig
from qmimic.config.teaching import QuantizerConfig as QuantizerConfig
