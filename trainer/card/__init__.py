"""`reste card`: a checkpoint as a folder of timm's (`folder`) with a model card in the hub's format (`text`)."""
