"Finetune pretrained vision encoders on galaxy images, with fastai and timm"
__version__ = "0.1.0"
