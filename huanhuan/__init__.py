"""Chat-嬛嬛: from any script or novel and one character's name to a chat model that speaks as that character."""
