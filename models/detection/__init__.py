"""Detection: from R-CNN to Mask R-CNN, SSD and YOLO, and the geometry they share."""
