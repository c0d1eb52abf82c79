"""Finetune pretrained vision encoders on galaxy images, with fastai and timm

Modules:

- `zoofast.bundle`: Save and load a finetuned model as a folder without pickle
- `zoofast.catalog`: A table of galaxies: read, check, split
- `zoofast.cli`: The `zoofast` command
- `zoofast.data`: Catalogue and task to fastai `DataLoaders`, with augmentation
- `zoofast.encoders`: A timm encoder and a head; where its weights come from
- `zoofast.groups`: Parameter groups: layer decay, weight decay, freezing, the optimizer
- `zoofast.images`: One image file (jpg, png, tiff, FITS) to one tensor: bands, stretch, size
- `zoofast.learner`: `galaxy_learner`, `fine_tune`
- `zoofast.plots`: Pictures for each question a user asks of a run; every function returns matplotlib Axes
- `zoofast.predict`: Catalogue in, table of predictions or representations out
- `zoofast.save`: A learner writes its bundle, its model card and its encoder
- `zoofast.schedules`: Learning-rate schedules: timm's and fastai's, followed by every group
- `zoofast.simulate`: A simulated survey with known truth: images, FITS cubes, a catalogue and volunteer votes
- `zoofast.store`: Images decoded once, kept as bytes
- `zoofast.tasks`: What is predicted: each task knows its outputs, loss, metrics and column names"""

__version__ = "0.1.0"
