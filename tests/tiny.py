"A finetuned model that is as small as can be"
import torch
from zoofast.bundles.bundle import write_bundle
from zoofast.bundles.model import GalaxyModel
from zoofast.encoders.encoder import GalaxyNet
from zoofast.encoders.sources import create_encoder
from zoofast.images.reader import ImageReader
from zoofast.tasks.classes import Classification

def tiny_bundle(folder, df, seed=0):
    "A bundle of random weights for the morphology of a catalogue's galaxies, images of 32 pixels"
    task = Classification('morphology').fit(df)
    torch.manual_seed(seed)
    net = GalaxyNet(create_encoder('test_vit', 32, pretrained=False), task.n_out)
    write_bundle(folder, GalaxyModel(net, task, ImageReader(32)))
