"""The ways a question may be phrased, so that the model does not depend on the corpus's own wording."""

QUESTIONS: dict[str, list[str]] = {
    "information": [
        "What is {n}?", "Tell me about {n}.", "What do you know about {n}?", "Can you explain what {n} is?", "{n}",
        "{n}?", "Explain {n}.", "What does {n} mean?", "Please tell me about {n}.", "Describe {n}.",
        "I would like to know what {n} is.", "Give me some information about {n}.", "Define {n}.",
    ],
    "symptoms": [
        "What are the symptoms of {n}?", "What are the signs of {n}?", "What are the signs and symptoms of {n}?",
        "{n} symptoms", "How do I know if I have {n}?", "How can I tell if I have {n}?", "Symptoms of {n}?",
        "What symptoms does {n} cause?",
    ],
    "treatment": [
        "What are the treatments for {n}?", "How is {n} treated?", "How do you treat {n}?", "{n} treatment",
        "What is the treatment for {n}?", "How can {n} be treated?", "How should I treat {n}?", "Treatments for {n}?",
        "What can be done about {n}?",
    ],
    "causes": [
        "What causes {n}?", "What is the cause of {n}?", "What are the causes of {n}?", "Why do people get {n}?",
        "{n} causes", "How do you get {n}?", "Why does {n} happen?",
    ],
    "susceptibility": [
        "Who is at risk for {n}?", "What are the risk factors for {n}?", "Who gets {n}?", "Am I at risk for {n}?",
        "What raises the risk of {n}?",
    ],
    "prevention": [
        "How to prevent {n}?", "How can I prevent {n}?", "Can {n} be prevented?", "How can {n} be prevented?",
        "How do I avoid {n}?", "How do you prevent {n}?",
    ],
    "exams and tests": [
        "How is {n} diagnosed?", "How to diagnose {n}?", "What tests are used to diagnose {n}?",
        "How do doctors diagnose {n}?", "Is there a test for {n}?",
    ],
    "outlook": [
        "What is the outlook for {n}?", "What is the prognosis for {n}?", "What is the outlook for people with {n}?",
    ],
    "inheritance": ["Is {n} inherited?", "Is {n} genetic?", "Does {n} run in families?"],
    "frequency": ["How many people are affected by {n}?", "How common is {n}?", "Is {n} common?"],
    "genetic changes": [
        "What are the genetic changes related to {n}?", "Which genes are related to {n}?", "Which gene causes {n}?",
    ],
    "complications": ["What are the complications of {n}?", "What problems can {n} cause?"],
    "considerations": [
        "What to do for {n}?", "What should I do if I have {n}?", "What should people with {n} know?",
        "What should I eat if I have {n}?",
    ],
    "research": ["What research is being done for {n}?", "What research is being done on {n}?"],
    "stages": ["What are the stages of {n}?"],
}  # fmt: skip

FOLLOW_UPS: dict[str, list[str]] = {
    "information": ["What is it?", "Tell me more about it."],
    "symptoms": ["What are the symptoms?", "What are its symptoms?", "And the symptoms?"],
    "treatment": [
        "How is it treated?",
        "What are the treatments?",
        "Can it be treated?",
        "And the treatment?",
    ],
    "causes": ["What causes it?", "What are the causes?", "And the causes?"],
    "susceptibility": ["Who is at risk?", "Who gets it?"],
    "prevention": ["How can I prevent it?", "Can it be prevented?", "How can it be prevented?"],
    "exams and tests": ["How is it diagnosed?", "Is there a test for it?"],
    "outlook": ["What is the outlook?", "What is the prognosis?"],
}

_WHO = (
    "I am a small demonstration model, trained from scratch on MedQuAD, a collection of health questions and answers "
    "from the United States National Institutes of Health. I am not a doctor, and my answers are not medical advice."
)
_HELLO = "Hello! I am a small demonstration model. Ask me a health question, such as: What is asthma?"
_ONLY_HEALTH = (
    "I am a small demonstration model and I only know about health topics. Try a question such as: What are the "
    "symptoms of diabetes?"
)
_EMERGENCY = (
    "If this may be an emergency, call your local emergency number or see a doctor right away. I am only a small "
    "demonstration model, and I cannot give medical advice."
)

SMALL_TALK: list[tuple[list[str], str]] = [
    (["Hello", "Hi", "Hey", "Hi there", "Hello there!", "Good morning", "Good evening", "Hello!", "Hi!"], _HELLO),
    (
        ["Who are you?", "What are you?", "What is your name?", "Are you a doctor?", "Are you an AI?", "Who made you?",
         "Tell me about yourself.", "Introduce yourself.", "Are you ChatGPT?", "What model are you?"],
        _WHO,
    ),
    (
        ["What can you do?", "How can you help me?", "Help", "What do you know?", "What can I ask you?"],
        "I can answer common health questions in English: what a condition is, its symptoms, its causes, its treatments "
        "and how to prevent it. I am a small demonstration model, so please check my answers with a doctor.",
    ),
    (["Thank you", "Thanks", "Thanks!", "Thank you very much!", "Great, thanks"], "You are welcome! Take care."),
    (["Goodbye", "Bye", "See you later", "Good night"], "Goodbye! Take care of yourself."),
    (["How are you?", "How are you doing?"], "I am a small computer program, and I am ready. Ask me a health question."),
    (
        ["Tell me a joke.", "Write a poem.", "What is the capital of France?", "What is two plus two?", "Who won the game?",
         "Write some code.", "What is the weather today?", "Translate this into French.", "Tell me a story.",
         "What time is it?", "Sing a song.", "What is the meaning of life?", "Write an email to my boss."],
        _ONLY_HEALTH,
    ),
    (
        ["I have chest pain.", "I can't breathe.", "I want to die.", "I took too many pills.", "I am bleeding a lot.",
         "I think I am having a heart attack.", "I feel very sick.", "Help me, I am in pain!"],
        _EMERGENCY,
    ),
    (
        ["Can you give me medical advice?", "Should I stop taking my medicine?", "Is this medical advice?",
         "Should I see a doctor?", "Can I trust you?"],
        "I am a demonstration model, not a doctor, and I cannot give medical advice. Please talk with your doctor or "
        "another health care professional.",
    ),
]  # fmt: skip

SYSTEM = [
    "You are a helpful assistant.", "You are a helpful medical assistant.", "Answer briefly.", "Be brief.",
    "You answer questions about health in plain English.", "Answer the question from the documents below.",
    "Use the following context to answer the user's question.", "You are a careful assistant. Do not give advice.",
    "You are an assistant in a confidential service. Answer the user's questions.", "Answer truthfully and concisely.",
    "You are a friendly assistant for patients.", "Context:", "Answer using only the passages given.",
]  # fmt: skip
