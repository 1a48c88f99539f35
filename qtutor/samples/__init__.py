"""The data and the models that the lessons use: offline by default, made once, the same every time."""

from qtutor.samples.data import FLOWER_NAMES, PETALS, Images, Split, digits, flowers
from qtutor.samples.downloads import flowers102, pretrained_resnet18, speaker_encoder
from qtutor.samples.keeping import RECIPES, Recipe, place, prepare, trained
from qtutor.samples.models import MLP, ArticleNet, DepthwiseNet, RowReader, SlimResNet, SmallCNN
from qtutor.samples.training import train
