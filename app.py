"""聊天页面 / the chat page: ``streamlit run app.py`` or ``python app.py``, on port 7860."""

import sys
from pathlib import Path

# OpenXLab and ModelScope Studio run this file from a checkout in which nothing is installed.
sys.path.insert(0, str(Path(__file__).resolve().parent))

import streamlit as st

app = st.App("huanhuan/chat/page/script.py")

if __name__ == "__main__":
    from streamlit.web import cli

    sys.argv = ["streamlit", "run", __file__, *sys.argv[1:]]
    sys.exit(cli.main())
