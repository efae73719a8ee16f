// Table lookup per element: any function of few input bits. TABLE holds PE files' worth of words side by side: word
// {fold, value} has the result of PE 0 in the low bits when BY_CHANNEL, one result for every PE otherwise.
module dp_table #(
  parameter int PE = 1, CF = 1,
  parameter int IB = 8, OB = 8,
  parameter bit BY_CHANNEL = 0,
  parameter CONTENT = "table"        // files CONTENT_<pe>.dat (BY_CHANNEL) or CONTENT_0.dat
) (
  input  logic clk, rst,
  input  logic [PE*IB-1:0] s_data, input logic s_valid, output logic s_ready,
  output logic [PE*OB-1:0] m_data, output logic m_valid, input logic m_ready
);
  localparam int FOLDS = BY_CHANNEL ? CF : 1;
  localparam int FW = FOLDS > 1 ? $clog2(FOLDS) : 1;
  wire en = !m_valid || m_ready;
  assign s_ready = en;
  logic [FW-1:0] at;
  always_ff @(posedge clk) begin
    if (rst) begin
      at <= '0; m_valid <= 1'b0;
    end else if (en) begin
      m_valid <= s_valid;
      if (s_valid) at <= at == FW'(FOLDS-1) ? '0 : at + 1'b1;
    end
  end
  for (genvar p = 0; p < PE; p++) begin : g
    logic [OB-1:0] rom [FOLDS << IB];
    initial $readmemh($sformatf("%s_%0d.dat", CONTENT, BY_CHANNEL ? p : 0), rom);
    wire [FW+IB-1:0] index = {at, s_data[p*IB +: IB]};
    always_ff @(posedge clk) if (en) m_data[p*OB +: OB] <= rom[index[$clog2(FOLDS << IB)-1:0]];
  end
endmodule
