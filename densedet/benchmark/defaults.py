"""What the benchmarks measure unless another size is asked for; no heavy import."""

HEIGHT, WIDTH = 480, 640
"""Of images, pixels."""

CLASSES = (10, 150, 847, 1203, 5000)
"""Of ``segment``."""

GUIDANCE_CONFIG = "projects/denseclip/configs/ade20k_rn50_denseclip.py"

TEXT_MODEL, TEXT_VOCABULARY, TEXT_BATCH = "RN50-quickgelu", "ade20k_150_denseclip", 2

PREDICT_CONFIG, PREDICT_KEPT = "projects/fvit/configs/quickstart.py", 10

TOWER_SIZES = (224, 640)
"""Of the images of ``towers``, pixels."""

STARTS = ("help", "vocabulary", "predictor")
"""Of ``start``."""
