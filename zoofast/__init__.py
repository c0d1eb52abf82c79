"""Finetune pretrained vision encoders on galaxy images, with fastai and timm

Modules:

- `zoofast.catalog`: A table of galaxies: read, check, split
- `zoofast.data`: Catalogue and task to fastai `DataLoaders`: augmentation, and a decoded-image cache
- `zoofast.encoders`: A timm encoder and a head; where its weights come from
- `zoofast.groups`: Parameter groups: layer decay, weight decay, freezing, the optimizer
- `zoofast.images`: One image file (jpg, png, tiff, FITS) to one tensor: bands, stretch, size
- `zoofast.learner`: `galaxy_learner`, `fine_tune`
- `zoofast.tasks`: What is predicted: each task knows its outputs, loss, metrics and column names"""

__version__ = "0.1.0"
