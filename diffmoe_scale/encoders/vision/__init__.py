"""What a frozen encoder says of pictures, for alignment.

teacher.py  a DINOv2 or DINOv3 from a local folder: features of patches
"""
