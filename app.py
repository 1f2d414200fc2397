"""聊天页面 / the chat page: ``streamlit run app.py`` or ``python app.py``, on port 7860."""

import sys
from pathlib import Path

# OpenXLab and ModelScope Studio run this file from a checkout in which nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import streamlit as st

from huanhuan.chat.page import serving

# Streamlit looks for this name and this call in the file's text.
app = st.App(
    serving.SCRIPT,
    routes=serving.routes(),
    middleware=serving.middleware(),
    lifespan=serving.lifespan,
    on_script_error=serving.on_script_error,
)

if __name__ == "__main__":
    from streamlit.web import cli

    sys.argv = ["streamlit", "run", __file__, *sys.argv[1:]]
    sys.exit(cli.main())
