"""What the trainer knows about topics: which are common, and which names hide in MedQuAD's titles."""

# Conditions that a visitor is likely to try first.
COMMON = {
    "asthma", "diabetes", "type 1 diabetes", "type 2 diabetes", "gestational diabetes", "high blood pressure",
    "gout", "stroke", "heart attack", "heart failure", "heart diseases", "coronary heart disease",
    "coronary artery disease", "atrial fibrillation", "arrhythmia", "angina", "high blood cholesterol",
    "cholesterol", "anemia", "iron-deficiency anemia", "pneumonia", "bronchitis", "COPD", "flu",
    "common cold", "cough", "allergy", "hay fever", "sinusitis", "sore throat", "migraine", "headache",
    "epilepsy", "Parkinson's disease", "Alzheimer's disease", "dementia", "multiple sclerosis", "depression",
    "anxiety", "anxiety disorders", "insomnia", "sleep apnea", "osteoporosis", "osteoarthritis", "arthritis",
    "rheumatoid arthritis", "back pain", "fibromyalgia", "psoriasis", "eczema", "acne", "shingles",
    "chickenpox", "measles", "tuberculosis", "HIV/AIDS", "hepatitis A", "hepatitis B", "hepatitis C",
    "cirrhosis", "kidney stones", "kidney disease", "chronic kidney disease", "gallstones", "diarrhea",
    "irritable bowel syndrome", "Crohn's disease", "ulcerative colitis", "celiac disease",
    "lactose intolerance", "GERD", "peptic ulcer", "constipation", "hemorrhoids", "urinary tract infection",
    "urinary tract infections", "obesity", "overweight and obesity", "cataract", "glaucoma", "hearing loss",
    "breast cancer", "lung cancer", "prostate cancer", "colorectal cancer", "skin cancer", "melanoma",
    "leukemia", "malaria", "rabies", "Lyme disease", "foodborne illness", "foodborne illnesses",
    "dehydration", "fever", "hyperthyroidism", "hypothyroidism", "autism",
    "attention deficit hyperactivity disorder", "schizophrenia", "bipolar disorder", "pregnancy", "menopause",
    "endometriosis", "lupus", "sickle cell disease", "cystic fibrosis", "hypoglycemia", "appendicitis",
    "concussion", "sepsis", "scabies", "head lice", "dizziness and vertigo", "tinnitus",
}  # fmt: skip

# Titles that hide the name of a condition inside a headline.
RENAME = {
    "your guide to diabetes: type 1 and type 2": "Diabetes",
    "i can lower my risk for type 2 diabetes: a guide for american indians": "Type 2 Diabetes",
    "am i at risk for type 2 diabetes? taking steps to lower your risk of getting diabetes": "Type 2 Diabetes",
    "causes of diabetes": "Diabetes",
    "diagnosis of diabetes and prediabetes": "Diabetes",
    "urinary tract infection in adults": "Urinary Tract Infection",
    "kidney stones in adults": "Kidney Stones",
    "diabetes type 1": "Type 1 Diabetes",
    "diabetes type 2": "Type 2 Diabetes",
    "varicella (chickenpox) vaccination": "Chickenpox",
    "tuberculosis (tb)": "Tuberculosis",
    "parasites - lice - head lice": "Head Lice",
    "parasites - lice - body lice": "Body Lice",
    'parasites - lice - pubic "crab" lice': "Pubic Lice",
    "hematuria (blood in the urine)": "Hematuria",
    "gum (periodontal) disease": "Gum Disease",
    "prostate enlargement: benign prostatic hyperplasia": "Enlarged Prostate",
    "pyelonephritis: kidney infection": "Kidney Infection",
    "alzheimer's caregiving": "Alzheimer's caregiving",
}

# Other names for a condition that a question may use.
ALIASES = {
    "high blood pressure": ["hypertension", "high blood pressure"],
    "heart attack": ["heart attack", "a heart attack"],
    "high blood cholesterol": ["high cholesterol", "high blood cholesterol"],
    "stroke": ["stroke", "a stroke"],
    "flu": ["the flu", "flu", "influenza"],
    "common cold": ["the common cold", "a cold", "common cold"],
    "urinary tract infection": ["urinary tract infection", "a urinary tract infection", "UTI"],
    "diabetes": ["diabetes", "diabetes", "diabetes mellitus"],
    "osteoarthritis": ["osteoarthritis", "OA"],
    "chickenpox": ["chickenpox", "chicken pox"],
    "tuberculosis": ["tuberculosis", "TB"],
    "heart diseases": ["heart disease", "heart diseases"],
    "foodborne illness": ["food poisoning", "foodborne illness", "foodborne illnesses"],
    "dizziness and vertigo": ["vertigo", "dizziness", "dizziness and vertigo"],
}
